"""`weft alias`: where aliases point, where they pointed, and who may move them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import click

from weft_client.cli.options import expect_option, json_option, registry_option
from weft_client.cli.output import Column, echo_json, echo_table, moment, printable, short
from weft_client.cli.protect import protect, protected, unprotect
from weft_client.cli.sources import opened
from weft_client.cli.views import alias_json, move_json
from weft_registry.reference import AdapterName

if TYPE_CHECKING:
    from weft_registry.api import Alias, AliasMove, AliasWatch

_HELP = ("-h", "--help")


class AliasGroup(click.Group):
    """`weft alias NAMESPACE/NAME ALIAS REFERENCE`, which sets one, is older than the commands, and stays."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with `set` put before what names no command."""
        positional = next((arg for arg in args if not arg.startswith("-")), "")
        sets = args and args[0] not in (*self.commands, *_HELP) and ("/" in positional or args[0].startswith("-"))
        if sets:
            args = ["set", *args]
        return super().parse_args(ctx, args)


@click.group(cls=AliasGroup)
def alias() -> None:
    """Move aliases, take moves back, follow them, protect them.

    `weft alias NAMESPACE/NAME ALIAS REFERENCE` is short for `weft alias set`.

    \b
    Example:
      weft alias set acme/topics production v2
      weft alias rollback acme/topics production
    """


@alias.command("set")
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.argument("alias")
@click.argument("target", metavar="REFERENCE")
@expect_option
@json_option
@registry_option
def set_alias(
    adapter: str, alias: str, target: str, expected_etag: str, as_json: bool, registry_target: str | None
) -> None:
    """Point an alias at a version.

    REFERENCE is a tag, an alias or a digest of this adapter, or a whole reference to it. The answer has the alias's
    etag: with --expect, nobody else's move is lost.

    \b
    Example:
      weft alias set acme/topics production v2
      weft alias set acme/topics production v3 --expect 5f0c
    """
    name = AdapterName.parse(adapter)
    with opened(registry_target) as registry:
        _echo_alias(name, registry.set_alias(name, alias, target, expected_etag), as_json)


@alias.command()
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.argument("alias")
@expect_option
@json_option
@registry_option
def rm(adapter: str, alias: str, expected_etag: str, as_json: bool, registry_target: str | None) -> None:
    """Remove an alias. The version that it named stays.

    \b
    Example:
      weft alias rm acme/topics candidate
    """
    name = AdapterName.parse(adapter)
    with opened(registry_target) as registry:
        digest = registry.delete_alias(name, alias, expected_etag)
    if as_json:
        echo_json({"adapter": adapter, "alias": alias, "digest": digest})
        return
    click.echo(f"removed {name}:{alias}, which named {digest}")


@alias.command()
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.argument("alias")
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many moves to take back."
)
@expect_option
@json_option
@registry_option
def rollback(
    adapter: str, alias: str, steps: int, expected_etag: str, as_json: bool, registry_target: str | None
) -> None:
    """Point an alias at what it named before its last move, or before so many.

    This is a move like any other: taking it back again goes forward. A version that was yanked or deleted is never
    gone back to; the error says which it is.

    \b
    Example:
      weft alias rollback acme/topics production
    """
    name = AdapterName.parse(adapter)
    with opened(registry_target) as registry:
        _echo_alias(name, registry.rollback_alias(name, alias, expected_etag, steps), as_json)


@alias.command()
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.argument("alias", default="", metavar="[ALIAS]")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="Only the last so many moves.")
@json_option
@registry_option
def history(adapter: str, alias: str, last: int, as_json: bool, registry_target: str | None) -> None:
    """Where an adapter's aliases have been, newest first: of one alias, or of all.

    \b
    Example:
      weft alias history acme/topics production
    """
    name = AdapterName.parse(adapter)
    with opened(registry_target) as registry:
        moves = registry.list_alias_moves(name, alias, last)
    if as_json:
        echo_json([move_json(move) for move in moves])
        return
    columns = (Column("WHEN"), Column("ALIAS"), Column("TO"), Column("FROM"), Column("BY", folds=True))
    rows = [
        (
            moment(move.moved_at),
            move.alias,
            short(move.digest) if move.digest else "(removed)",
            short(move.previous_digest) or "-",
            move.actor or "-",
        )
        for move in moves
    ]
    echo_table(columns, rows, f"{name} has never had an alias {alias!r}" if alias else f"no alias of {name} has moved")


@alias.command()
@click.argument("adapters", nargs=-1, metavar="[NAMESPACE/NAME]...")
@click.option(
    "--after", type=click.IntRange(-1), default=0, help="Begin after this sequence; 0: from now on, -1: all there were."
)
@click.option("--moves", "count", type=click.IntRange(1), help="End after so many moves.")
@json_option
@registry_option
def watch(adapters: tuple[str, ...], after: int, count: int | None, as_json: bool, registry_target: str | None) -> None:
    """Print moves as they happen, until Ctrl-C: of these adapters' aliases, or of all.

    A connection that breaks is taken up again where it was. With --json there is one object a line; its `sequence` is
    what --after goes on from.

    \b
    Example:
      weft alias watch acme/topics
      weft alias watch --json --after 4711
    """
    names = [AdapterName.parse(adapter) for adapter in adapters]
    with opened(registry_target) as registry, closing(registry.watch_aliases(names, after)) as news:
        for move in _moves(news, count):
            if as_json:
                click.echo(json.dumps(move_json(move), ensure_ascii=False))
            else:
                where = f"is {move.digest}" if move.digest else "was removed"
                by = f", by {move.actor}" if move.actor else ""
                click.echo(printable(f"{moment(move.moved_at)}  {move.adapter}:{move.alias} {where}{by}"))


for command in (protect, unprotect, protected):
    alias.add_command(command)


def _echo_alias(adapter: AdapterName, moved: Alias, as_json: bool) -> None:
    if as_json:
        echo_json({"adapter": str(adapter), **alias_json(moved)})
        return
    before = f" (before: {short(moved.previous_digest)})" if moved.previous_digest else ""
    click.echo(f"{adapter}:{moved.name} is {moved.digest}{before}, etag {moved.etag}")


def _moves(news: AliasWatch, count: int | None) -> Iterator[AliasMove]:
    """The moves in the news, at most `count` of them."""
    return islice((each.move for each in news if each.move is not None), count)
