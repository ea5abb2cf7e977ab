"""`weft promote`: an alias moves to a version only if its metrics are good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from weft_client.cli.failure import Failure
from weft_client.cli.options import expect_option, json_option, registry_option
from weft_client.cli.output import echo_json, short
from weft_client.cli.sources import opened
from weft_client.cli.views import alias_json
from weft_registry import conditions
from weft_registry.errors import ConflictError, InvalidInputError
from weft_registry.reference import LATEST, check_label

if TYPE_CHECKING:
    from weft_registry.api import RegistryApi, Version

NOT_MET = 3
"""The status when the condition does not hold: apart from 1, which says that something went wrong."""


@click.command()
@click.argument("reference")
@click.argument("alias")
@click.option(
    "--if",
    "condition",
    required=True,
    metavar="CONDITION",
    help="NAME OP NUMBER on the version's metrics, several joined by `and`. OP: >= > <= < == !=.",
)
@expect_option
@json_option
@registry_option
def promote(
    reference: str, alias: str, condition: str, expected_etag: str, as_json: bool, registry_target: str | None
) -> None:
    """Point an alias at a version, but only if its metrics hold a condition.

    Every comparison is printed. Status 3 if one does not hold; the alias then stays where it is. If somebody else moves
    the alias after this command has looked, theirs stands, and this fails.

    \b
    Example:
      weft promote acme/topics:candidate production --if 'exact_match >= 0.8 and loss < 1.2'
    """
    clauses = conditions.parse(condition)
    check_label(alias, "alias")
    if alias == LATEST:
        raise InvalidInputError('"latest" moves by publishing: name another alias')
    with opened(registry_target) as registry:
        version = registry.resolve(reference)
        # Before looking at the metrics: whatever moves the alias from here on is a conflict.
        etag = expected_etag or _etag(registry, version, alias)
        outcomes = conditions.check(clauses, version.manifest.metrics)
        met = all(outcome.holds for outcome in outcomes)
        if not as_json:
            for outcome in outcomes:
                click.echo(outcome.describe())
        moved = registry.set_alias(version.adapter, alias, version.digest, etag) if met else None
    if as_json:
        checks = [
            {
                "metric": outcome.clause.name,
                "value": str(outcome.value),
                "op": outcome.clause.op,
                "number": str(outcome.clause.number),
                "holds": outcome.holds,
            }
            for outcome in outcomes
        ]
        echo_json(
            {
                "adapter": str(version.adapter),
                "digest": version.digest,
                "promoted": met,
                "conditions": checks,
                "alias": alias_json(moved) if moved else None,
            }
        )
    elif moved is not None:
        before = f" (before: {short(moved.previous_digest)})" if moved.previous_digest else ""
        click.echo(f"{version.adapter}:{moved.name} is {moved.digest}{before}, etag {moved.etag}")
    if not met:
        Failure(f"{version.adapter}@{version.digest} is not promoted: {alias} stays where it is").show()
        raise click.exceptions.Exit(NOT_MET)


def _etag(registry: RegistryApi, version: Version, alias: str) -> str:
    """The alias's etag now; "none" if there is no such alias.

    A registry tells it only to who moves the alias or fails to: an etag that no alias ever had asks without moving.
    """
    try:
        registry.set_alias(version.adapter, alias, version.digest, "never")
    except ConflictError as error:
        return error.metadata["etag"]
    raise AssertionError("a registry made an alias with the etag 'never'")
