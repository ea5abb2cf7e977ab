"""`weft list`: the adapters that a registry holds, or the versions in it that something is true of."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from weft_client.cli.ages import Age
from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import Column, echo_json, echo_table, moment, moment_us, short, size
from weft_client.cli.sources import home, opened
from weft_client.cli.views import adapter_json, version_json
from weft_registry.catalog import quick_listing
from weft_registry.uncollected import uncollected

if TYPE_CHECKING:
    from weft_registry.api import RegistryApi, Version, VersionQuery


def _order_key(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """`--sort`. Raises `click.BadParameter`."""
    if value is None or value in ("name", "published", "size") or value.removeprefix("metric:") not in ("", value):
        return value
    raise click.BadParameter(f"{value!r}: name, published, size or metric:NAME; --reverse turns it around")


@click.command("list")
@click.argument("namespace", default="", metavar="[NAMESPACE]")
@click.option("--kind", default="", help="Only of this kind; `weft kinds` lists them.")
@click.option("--base", default="", metavar="BASE", help="Only for this base: its name, or digits of its fingerprint.")
@click.option("--label", default="", metavar="LABEL", help="Only what this tag or alias names.")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only with metrics of which this holds: 'exact_match >= 0.8 and loss < 1.2'.",
)
@click.option("--newer-than", type=Age(), metavar="AGE", help="Only what was published since: 12h, 7d, 2026-01-31.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Only what was published before.")
@click.option("--children-of", metavar="REFERENCE", help="Only what was trained on from this version.")
@click.option(
    "--sort",
    metavar="KEY",
    callback=_order_key,
    help="name, published (newest first), size (largest first) or metric:NAME (highest first).",
)
@click.option("--reverse", is_flag=True, help="The other way around.")
@click.option("--all-versions", is_flag=True, help="Every version, and not only the latest of each adapter.")
@json_option
@registry_option
def list_adapters(
    namespace: str,
    kind: str,
    base: str,
    label: str,
    conditions: tuple[str, ...],
    newer_than: datetime | None,
    older_than: datetime | None,
    children_of: str | None,
    sort: str | None,
    reverse: bool,
    all_versions: bool,
    as_json: bool,
    registry_target: str | None,
) -> None:
    """List adapters, of every namespace or of one. `weft ls` is the same.

    With any option that narrows, sorts or asks for all versions, one line for each version that all of it is true of:
    the latest of each adapter only, unless --all-versions, --label or --children-of say otherwise.

    \b
    Example:
      weft list acme
      weft list --base smol --where 'exact_match >= 0.8' --sort metric:exact_match
      weft list acme --newer-than 7d --all-versions
    """
    order_by = _order(sort, reverse)
    wanted: dict[str, Any] = {
        "kind": kind,
        "base": base,
        "label": label,
        "conditions": conditions,
        "published_after": newer_than,
        "published_before": older_than,
        "all_versions": all_versions or bool(label) or bool(children_of),
    }
    narrowed = any(wanted.values()) or order_by != _order(None, False)
    if not narrowed and not as_json:
        _list_all(namespace, registry_target)
        return
    # Imported here: the table of all adapters is printed in the time that the registry's vocabulary takes to load.
    from weft_registry.api import VersionQuery

    query = VersionQuery(namespace=namespace, order_by=order_by, **wanted)
    with opened(registry_target) as registry:
        if narrowed:
            _list_versions(registry, query, children_of, as_json)
            return
        latest = {version.adapter: version for version in registry.search_versions(query)}
        summaries = registry.list_adapters(namespace)
    echo_json([adapter_json(summary, latest.get(summary.adapter)) for summary in summaries])


@uncollected()
def _list_all(namespace: str, registry_target: str | None) -> None:
    lines = None if registry_target else quick_listing.list_lines(home(), namespace)
    if lines is None:
        with opened(registry_target) as registry:
            lines = [quick_listing.line_of(summary) for summary in registry.list_adapters(namespace)]
    columns = (
        Column("ADAPTER"),
        Column("KIND"),
        Column("LATEST"),
        Column("TAGS", folds=True),
        Column("VERSIONS", right=True),
        Column("SIZE", right=True),
        Column("BASE", folds=True),
        Column("PUBLISHED", folds=True),
    )
    where = f"in namespace {namespace}" if namespace else "yet"
    echo_table(
        columns,
        [_cells(line) for line in lines],
        f"no adapters {where}; publish one with `weft push DIRECTORY NAMESPACE/NAME`",
    )


def _list_versions(registry: RegistryApi, query: VersionQuery, children_of: str | None, as_json: bool) -> None:
    if children_of:
        query = replace(query, parent_digest=registry.resolve(children_of).digest)
    found = registry.search_versions(query)
    if as_json:
        echo_json([version_json(version) for version in found])
        return
    columns = (
        Column("ADAPTER"),
        Column("DIGEST"),
        Column("KIND"),
        Column("LABELS", folds=True),
        Column("SIZE", right=True),
        Column("BASE", folds=True),
        Column("PUBLISHED", folds=True),
        Column("METRICS", folds=True),
    )
    echo_table(columns, [_row(version) for version in found], "no version is like that")


def _order(sort: str | None, reverse: bool) -> str:
    """The order as the registry says it: what people look for first, first."""
    key = sort or "name"
    return key if (key == "name") != reverse else f"-{key}"


def _row(version: Version) -> tuple[str, ...]:
    document = json.loads(version.manifest_bytes)
    return (
        str(version.adapter),
        short(version.digest),
        document["kind"],
        ", ".join((*version.tags, *version.aliases)),
        size(version.size_bytes),
        document["base"]["id"],
        moment(version.published_at),
        ", ".join(
            f"{metric['name']}={metric['value']}" + (f" ({metric['split']})" if metric["split"] else "")
            for metric in document["metrics"]
        ),
    )


def _cells(line: quick_listing.Line) -> tuple[str, ...]:
    adapter, count, kind, digest, tags, size_bytes, base, published_at_us = line
    if not digest:
        return adapter, "-", "(all yanked)", "", str(count), "", "", ""
    return adapter, kind, short(digest), tags, str(count), size(size_bytes), base, moment_us(published_at_us)
