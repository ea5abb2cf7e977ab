"""`weft diff`: what differs between two versions, down to their tensors."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import Column, echo_fields, echo_json, echo_table
from weft_client.cli.sources import opened

if TYPE_CHECKING:
    from weft_registry.diff import MetricDiff, VersionDiff

_TENSORS = 40
"""Tensors that are listed by default: the 400 of an adapter of every module say less than the ones that moved most."""


@click.command()
@click.argument("old", metavar="REFERENCE")
@click.argument("new", metavar="REFERENCE")
@click.option(
    "--every-tensor", "every", is_flag=True, help=f"Every tensor, and not only the {_TENSORS} that moved most."
)
@json_option
@registry_option
def diff(old: str, new: str, every: bool, as_json: bool, registry_target: str | None) -> None:
    """Compare two versions: settings, metrics side by side, and how far their tensors are apart.

    A tensor's figure is |new - old| / |old|, in Frobenius norms. A and B of a low-rank adapter may differ and compute
    the same, so for two adapters of one low-rank kind the products s B A of each module are compared, too: that figure
    is what the model feels.

    \b
    Example:
      weft diff acme/topics:production acme/topics:candidate
    """
    from weft_registry import diff as differences

    with opened(registry_target) as registry:
        found = differences.diff(registry, registry.resolve(old), registry.resolve(new))
    if as_json:
        echo_json(_json(found))
        return
    echo_fields(
        [("old", f"{found.old.adapter}@{found.old.digest}"), ("new", f"{found.new.adapter}@{found.new.digest}")]
    )
    _echo_settings(found)
    _echo_metrics(found)
    _echo_products(found, every)
    _echo_tensors(found, every)


def _echo_settings(found: VersionDiff) -> None:
    click.echo()
    columns = (Column("SETTING"), Column("OLD", folds=True), Column("NEW", folds=True))
    rows = [(each.key, _value(each.old), _value(each.new)) for each in found.settings]
    if rows:
        echo_table(columns, rows, "")
    else:
        click.echo("no setting differs")


def _echo_metrics(found: VersionDiff) -> None:
    if not found.metrics:
        return
    click.echo()
    columns = (Column("METRIC"), Column("OLD", right=True), Column("NEW", right=True), Column("CHANGE", right=True))
    echo_table(
        columns,
        [
            (
                f"{each.name} ({each.split})" if each.split else each.name,
                each.old or "-",
                each.new or "-",
                _change(each),
            )
            for each in found.metrics
        ],
        "",
    )


def _echo_products(found: VersionDiff, every: bool) -> None:
    from weft_registry.tensor_diff import overall

    together = overall(list(found.products))
    if together is None:
        return
    moved = sorted(found.products, key=lambda each: -each.relative)
    click.echo(f"\nproducts s B A of {len(moved)} modules: {_figure(together)} together")
    shown = [each for each in moved if each.relative][: None if every else _TENSORS]
    if shown:
        rows = [(each.module, _figure(each.relative), f"{each.old_norm:.4g}") for each in shown]
        echo_table((Column("MODULE"), Column("CHANGE", right=True), Column("OLD NORM", right=True)), rows, "")


def _echo_tensors(found: VersionDiff, every: bool) -> None:
    changed = [each for each in found.tensors if each.changed]
    click.echo(f"\n{len(changed)} of {len(found.tensors)} tensors differ")
    changed.sort(key=lambda each: -math.inf if each.relative is None else -each.relative)
    shown = changed[: None if every else _TENSORS]
    if not shown:
        return
    rows = [
        (
            each.name,
            _shape(each.old_shape),
            _shape(each.new_shape),
            "" if each.relative is None else _figure(each.relative),
        )
        for each in shown
    ]
    columns = (Column("TENSOR"), Column("OLD"), Column("NEW"), Column("CHANGE", right=True))
    echo_table(columns, rows, "")
    if len(shown) < len(changed):
        click.echo(f"and {len(changed) - len(shown)} that moved less; --every-tensor lists them", err=True)


def _json(found: VersionDiff) -> dict[str, Any]:
    """The schema that programs may rely on. A figure that is not finite is null: JSON has none."""
    from weft_registry.tensor_diff import overall

    return {
        "old": f"{found.old.adapter}@{found.old.digest}",
        "new": f"{found.new.adapter}@{found.new.digest}",
        "settings": [{"key": each.key, "old": each.old, "new": each.new} for each in found.settings],
        "metrics": [
            {"name": each.name, "split": each.split, "old": each.old, "new": each.new} for each in found.metrics
        ],
        "tensors": [
            {
                "name": each.name,
                "old_shape": each.old_shape,
                "new_shape": each.new_shape,
                "changed": each.changed,
                "relative": _finite(each.relative),
            }
            for each in found.tensors
        ],
        "products": [
            {
                "module": each.module,
                "old_norm": each.old_norm,
                "difference": each.difference,
                "relative": _finite(each.relative),
            }
            for each in found.products
        ],
        "products_relative": _finite(overall(list(found.products))),
    }


def _change(metric: MetricDiff) -> str:
    try:
        change = float(metric.new or "") - float(metric.old or "")
    except ValueError:
        return ""
    return f"{change:+.6g}"


def _value(value: Any) -> str:
    """A setting on one line."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"


def _figure(relative: float) -> str:
    return "from zero" if math.isinf(relative) else f"{relative:.4g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
