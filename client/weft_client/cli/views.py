"""What the registry's answers look like in JSON: the schema that programs may rely on. Keys are only ever added."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from weft_client.cli.output import timestamp

if TYPE_CHECKING:
    from weft_registry.admin_api import ProtectedAlias
    from weft_registry.api import AdapterSummary, Alias, AliasMove, VerifyReport, Version

_METRIC = ("name", "value", "dataset_sha256", "split")


def version_json(version: Version) -> dict[str, Any]:
    """One version, without its manifest."""
    # Not by `Manifest`, which checks every tensor again: a listing of thousands has no time for it.
    manifest = json.loads(version.manifest_bytes)
    return {
        "reference": f"{version.adapter}@{version.digest}",
        "adapter": str(version.adapter),
        "digest": version.digest,
        "kind": manifest["kind"],
        "base": manifest["base"]["id"],
        "base_weights_sha256": manifest["base"]["weights_sha256"],
        "tags": list(version.tags),
        "aliases": list(version.aliases),
        "size_bytes": version.size_bytes,
        "published_at": timestamp(version.published_at),
        "yanked": version.yanked,
        "yank_reason": version.yank_reason,
        "published_by": version.published_by,
        "parent_digest": version.parent_digest,
        "metrics": [{key: metric[key] for key in _METRIC} for metric in manifest["metrics"]],
    }


def version_with_manifest_json(version: Version) -> dict[str, Any]:
    """One version, with its manifest as published."""
    return {**version_json(version), "manifest": json.loads(version.manifest_bytes)}


def adapter_json(summary: AdapterSummary, latest: Version | None) -> dict[str, Any]:
    """One adapter and its latest version, which is null when every version is yanked."""
    return {
        "adapter": str(summary.adapter),
        "namespace": summary.adapter.namespace,
        "name": summary.adapter.name,
        "version_count": summary.version_count,
        "latest": version_json(latest) if latest else None,
    }


def alias_json(alias: Alias) -> dict[str, Any]:
    """Where an alias points."""
    return {
        "alias": alias.name,
        "digest": alias.digest,
        "etag": alias.etag,
        "moved_at": timestamp(alias.moved_at),
        "previous_digest": alias.previous_digest,
        "protected": alias.protected,
    }


def move_json(move: AliasMove) -> dict[str, Any]:
    """One move of an alias; `digest` is empty where it was removed."""
    return {
        "sequence": move.sequence,
        "adapter": str(move.adapter),
        "alias": move.alias,
        "digest": move.digest,
        "previous_digest": move.previous_digest,
        "etag": move.etag,
        "moved_at": timestamp(move.moved_at),
        "actor": move.actor,
    }


def protected_json(alias: ProtectedAlias) -> dict[str, Any]:
    """Who may move an alias, besides administrators; `name` is empty for all adapters of the namespace."""
    return {
        "namespace": alias.namespace,
        "name": alias.name,
        "alias": alias.alias,
        "token_names": list(alias.token_names),
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
