"""`weft versions`, `weft show`: what the registry holds of one adapter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from weft_client.cli.lineage import TOLD, lineage_fields, lineage_json, lineage_of
from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import Column, echo_fields, echo_json, echo_table, moment, short, size
from weft_client.cli.sources import opened
from weft_client.cli.views import version_json, version_with_manifest_json
from weft_registry.reference import AdapterName

if TYPE_CHECKING:
    from weft_registry.manifest import Metric


@click.command()
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.option("--all", "include_yanked", is_flag=True, help="Yanked versions too.")
@json_option
@registry_option
def versions(adapter: str, include_yanked: bool, as_json: bool, registry_target: str | None) -> None:
    """List the versions of an adapter, newest first.

    \b
    Example:
      weft versions acme/topics
    """
    name = AdapterName.parse(adapter)
    with opened(registry_target) as registry:
        found = registry.list_versions(name, include_yanked=include_yanked)
    if as_json:
        echo_json([version_json(version) for version in found])
        return
    columns = (
        Column("DIGEST"),
        Column("TAGS", folds=True),
        Column("ALIASES", folds=True),
        Column("KIND"),
        Column("BASE", folds=True),
        Column("SIZE", right=True),
        Column("PUBLISHED", folds=True),
        Column("METRICS", folds=True),
    )
    rows = [
        (
            short(version.digest) + (" (yanked)" if version.yanked else ""),
            ", ".join(version.tags),
            ", ".join(version.aliases),
            manifest.kind,
            manifest.base.id,
            size(version.size_bytes),
            moment(version.published_at),
            ", ".join(map(_metric, manifest.metrics)),
        )
        for version in found
        for manifest in [version.manifest]
    ]
    echo_table(columns, rows, f"every version of {name} is yanked; `weft versions {name} --all` shows them")


@click.command()
@click.argument("reference")
@json_option
@registry_option
def show(reference: str, as_json: bool, registry_target: str | None) -> None:
    """Show one version: what it is, where it comes from, what came of it, its files.

    REFERENCE is NAMESPACE/NAME[:TAG-OR-ALIAS][@sha256:DIGEST]; without a tag it means :latest.

    \b
    Example:
      weft show acme/topics:production
    """
    with opened(registry_target) as registry:
        version = registry.resolve(reference)
        lineage = lineage_of(registry, version)
    if as_json:
        echo_json({**version_with_manifest_json(version), **lineage_json(lineage)})
        return
    manifest = version.manifest
    echo_fields(
        [
            ("adapter", str(version.adapter)),
            ("digest", version.digest),
            ("tags", ", ".join(version.tags) or "-"),
            ("aliases", ", ".join(version.aliases) or "-"),
            ("kind", manifest.kind),
            ("base", manifest.base.id),
            ("base weights", manifest.base.weights_sha256),
            ("license", manifest.license or "-"),
            (
                "published",
                moment(version.published_at) + (f" by {version.published_by}" if version.published_by else ""),
            ),
            *lineage_fields(lineage, manifest.provenance),
            ("size", f"{size(version.size_bytes)} in {len(manifest.files)} files, {len(manifest.tensors)} tensors"),
            *([("yanked", version.yank_reason or "without a reason")] if version.yanked else []),
            *((f"adapter.{key}", _brief(value)) for key, value in manifest.adapter.items()),
            *((f"provenance.{key}", _brief(value)) for key, value in manifest.provenance.items() if key not in TOLD),
            *(("metric", _metric(metric)) for metric in manifest.metrics),
            *(("file", f"{file.path}  {size(file.size)}  {file.sha256}") for file in manifest.files),
        ]
    )


def _metric(metric: Metric) -> str:
    return f"{metric.name}={metric.value}" + (f" ({metric.split})" if metric.split else "")


def _brief(value: object) -> str:
    """A manifest's value on one line: 210 module names are told as their number and an example."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)}: {value[0]}, ..."
    if isinstance(value, dict) and len(value) > 8:
        return f"{len(value)} entries"
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return ", ".join(map(str, value)) or "-"
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
