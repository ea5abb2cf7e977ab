"""What the registry's answers look like in JSON: the schema that programs may rely on. Keys are only ever added."""

from __future__ import annotations

import json
from typing import Any

from weft_client.cli.output import timestamp
from weft_registry.api import AdapterSummary, Alias, VerifyReport, Version


def version_json(version: Version) -> dict[str, Any]:
    """One version, without its manifest."""
    manifest = version.manifest
    return {
        "reference": f"{version.adapter}@{version.digest}",
        "adapter": str(version.adapter),
        "digest": version.digest,
        "kind": manifest.kind,
        "base": manifest.base.id,
        "base_weights_sha256": manifest.base.weights_sha256,
        "tags": list(version.tags),
        "aliases": list(version.aliases),
        "size_bytes": version.size_bytes,
        "published_at": timestamp(version.published_at),
        "yanked": version.yanked,
        "yank_reason": version.yank_reason,
        "metrics": [vars(metric) for metric in manifest.metrics],
    }


def version_with_manifest_json(version: Version) -> dict[str, Any]:
    """One version, with its manifest as published."""
    return {**version_json(version), "manifest": json.loads(version.manifest_bytes)}


def adapter_json(summary: AdapterSummary) -> dict[str, Any]:
    """One adapter; `latest` is null when every version is yanked."""
    return {
        "adapter": str(summary.adapter),
        "namespace": summary.adapter.namespace,
        "name": summary.adapter.name,
        "version_count": summary.version_count,
        "latest": version_json(summary.latest) if summary.latest else None,
    }


def alias_json(alias: Alias) -> dict[str, Any]:
    """Where an alias points."""
    return {
        "alias": alias.name,
        "digest": alias.digest,
        "etag": alias.etag,
        "moved_at": timestamp(alias.moved_at),
        "previous_digest": alias.previous_digest,
    }


def report_json(report: VerifyReport) -> dict[str, Any]:
    """The outcome of a verification."""
    return {
        "digest": report.digest,
        "ok": not report.problems,
        "checked_files": report.checked_files,
        "checked_bytes": report.checked_bytes,
        "problems": list(report.problems),
    }
