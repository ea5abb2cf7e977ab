"""`weft audit`: who did what in a registry."""

from __future__ import annotations

import json
from datetime import datetime

import click

from weft_client.cli.ages import Age
from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import Column, echo_json, echo_table, moment, timestamp
from weft_client.cli.sources import administered


@click.command()
@click.option("--namespace", default="", metavar="NAMESPACE", help="Default: every one that you administer.")
@click.option("--actor", default="", metavar="NAME", help="A token's name; local; anonymous.")
@click.option("--action", default="", metavar="ACTION", help="publish, yank, alias.move, token.create, denied, ...")
@click.option("--since", type=Age(), metavar="TIME", help="So long ago (12h, 30d, 8w), or a date.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, newest first."
)
@json_option
@registry_option
def audit(
    namespace: str,
    actor: str,
    action: str,
    since: datetime | None,
    limit: int,
    as_json: bool,
    registry_target: str | None,
) -> None:
    """Show who did what, newest first. Nobody can change what is written there.

    \b
    Example:
      weft audit --namespace acme --since 7d
      weft audit --action denied --json
    """
    with administered(registry_target) as admin:
        entries = admin.audit_entries(namespace, actor=actor, action=action, since=since, limit=limit)
    if as_json:
        echo_json(
            [
                {
                    "sequence": entry.sequence,
                    "at": timestamp(entry.at),
                    "actor": entry.actor,
                    "action": entry.action,
                    "namespace": entry.namespace,
                    "subject": entry.subject,
                    "detail": json.loads(entry.detail_json),
                }
                for entry in entries
            ]
        )
        return
    columns = (
        Column("AT"),
        Column("ACTOR", folds=True),
        Column("ACTION"),
        Column("SUBJECT", folds=True),
        Column("DETAIL", folds=True),
    )
    rows = [
        (moment(entry.at), entry.actor, entry.action, entry.subject or entry.namespace, _detail(entry.detail_json))
        for entry in entries
    ]
    echo_table(columns, rows, empty="nothing in the audit log is like that")


def _detail(detail_json: str) -> str:
    detail = json.loads(detail_json)
    words = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in detail.items()}
    return ", ".join(f"{key} {value}" for key, value in words.items() if value not in ("", None, False))
