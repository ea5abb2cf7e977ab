"""`weft token create|list|revoke`: who may use a registry, and for what."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from weft_client.cli.ages import Deadline
from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import Column, echo_json, echo_table, moment, timestamp
from weft_client.cli.sources import administered
from weft_registry.principal import EVERY, Scope

if TYPE_CHECKING:
    from weft_registry.admin_api import Token


@click.group()
def token() -> None:
    """Make, list and end the tokens of a registry.

    The first one is made on the registry's own machine, where no token is asked for.

    \b
    Example:
      weft token create operator --scope admin
      weft token create ci --scope publish --namespace acme --expires 90d
    """


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it may do: resolve, list and download (read); push, yank, delete and sign (publish); move aliases that "
    "are not protected (alias); everything, and make tokens (admin). May be repeated. Default: read.",
)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAMESPACE",
    help="Where; may be repeated. Default: every namespace.",
)
@click.option(
    "--expires",
    "expires_at",
    type=Deadline(),
    metavar="TIME",
    help="From now (12h, 30d, 8w), or a date. Default: never.",
)
@json_option
@registry_option
def create(
    name: str,
    scopes: tuple[str, ...],
    namespaces: tuple[str, ...],
    expires_at: datetime | None,
    as_json: bool,
    registry_target: str | None,
) -> None:
    """Make a token and print it: this is the only time that it can be read.

    It can do no more than yours; made on the registry's own machine, it can do what you say. NAME is what histories
    and the audit log call its holder.

    \b
    Example:
      weft token create operator --scope admin
      weft token create ci --scope read --scope publish --scope alias --namespace acme --expires 90d
    """
    with administered(registry_target) as registry:
        made = registry.create_token(name, scopes or (Scope.READ.value,), namespaces or (EVERY,), expires_at)
    if as_json:
        echo_json({**_token_json(made.token), "secret": made.secret})
        return
    click.echo(f"{_what(made.token)}. Keep it: it is not shown again.", err=True)
    click.echo(made.secret)


@token.command("list")
@click.option("--ended", "include_ended", is_flag=True, help="Those that expired or were revoked, too.")
@json_option
@registry_option
def list_tokens(include_ended: bool, as_json: bool, registry_target: str | None) -> None:
    """List tokens, without their secrets.

    \b
    Example:
      weft token list --ended
    """
    with administered(registry_target) as admin:
        tokens = admin.list_tokens(include_ended=include_ended)
    if as_json:
        echo_json([_token_json(each) for each in tokens])
        return
    columns = (
        Column("NAME", folds=True),
        Column("ID"),
        Column("SCOPES", folds=True),
        Column("NAMESPACES", folds=True),
        Column("CREATED"),
        Column("BY", folds=True),
        Column("ENDS"),
    )
    rows = [
        (
            each.name,
            each.id,
            ",".join(sorted(each.scopes)),
            ",".join(sorted(each.namespaces)),
            moment(each.created_at),
            each.created_by,
            _end(each),
        )
        for each in tokens
    ]
    echo_table(columns, rows, empty="no tokens: `weft token create NAME` makes one")


@token.command()
@click.argument("token")
@json_option
@registry_option
def revoke(token: str, as_json: bool, registry_target: str | None) -> None:
    """End a token, by its name or id, at once.

    \b
    Example:
      weft token revoke ci
    """
    with administered(registry_target) as admin:
        ended = admin.revoke_token(token)
    if as_json:
        echo_json(_token_json(ended))
        return
    click.echo(f"{ended.name} ({ended.id}) is revoked")


def _what(token: Token) -> str:
    where = "everywhere" if EVERY in token.namespaces else f"in {', '.join(sorted(token.namespaces))}"
    until = f", until {moment(token.expires_at)}" if token.expires_at else ""
    return f"token {token.name}: {', '.join(sorted(token.scopes))} {where}{until}"


def _end(token: Token) -> str:
    if token.revoked_at:
        return f"revoked {moment(token.revoked_at)}"
    return moment(token.expires_at) if token.expires_at else ""


def _token_json(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": sorted(token.scopes),
        "namespaces": sorted(token.namespaces),
        "created_at": timestamp(token.created_at),
        "created_by": token.created_by,
        "expires_at": timestamp(token.expires_at) if token.expires_at else None,
        "revoked_at": timestamp(token.revoked_at) if token.revoked_at else None,
    }
