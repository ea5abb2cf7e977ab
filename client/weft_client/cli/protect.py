"""`weft alias protect`, `unprotect`, `protected`: who may move an alias."""

from __future__ import annotations

import click

from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import Column, echo_json, echo_table
from weft_client.cli.sources import administered
from weft_client.cli.views import protected_json


@click.command()
@click.argument("where", metavar="NAMESPACE[/NAME]")
@click.argument("alias")
@click.option(
    "--token",
    "token_names",
    multiple=True,
    metavar="NAME",
    help="A token that may move it. May be given several times.",
)
@json_option
@registry_option
def protect(where: str, alias: str, token_names: tuple[str, ...], as_json: bool, registry_target: str | None) -> None:
    """Let only administrators, and the tokens named, move an alias: of one adapter, or of all in a namespace.

    Moving is setting, removing, taking back, and publishing with the alias. Protecting again says anew who may.

    \b
    Example:
      weft alias protect acme production --token release
    """
    namespace, name = _place(where)
    with administered(registry_target) as admin:
        found = admin.protect_alias(namespace, name, alias, token_names)
    if as_json:
        echo_json(protected_json(found))
        return
    may = ", ".join(["administrators", *found.token_names])
    click.echo(f"{alias} is protected in {where}: {may} may move it")


@click.command()
@click.argument("where", metavar="NAMESPACE[/NAME]")
@click.argument("alias")
@json_option
@registry_option
def unprotect(where: str, alias: str, as_json: bool, registry_target: str | None) -> None:
    """Let everybody who may move aliases move this one again.

    \b
    Example:
      weft alias unprotect acme production
    """
    namespace, name = _place(where)
    with administered(registry_target) as admin:
        admin.unprotect_alias(namespace, name, alias)
    if as_json:
        echo_json({"namespace": namespace, "name": name, "alias": alias})
        return
    click.echo(f"{alias} is not protected in {where} any more")


@click.command()
@click.argument("namespace", default="", metavar="[NAMESPACE]")
@json_option
@registry_option
def protected(namespace: str, as_json: bool, registry_target: str | None) -> None:
    """List the protected aliases of a namespace, or of all that you administer.

    \b
    Example:
      weft alias protected acme
    """
    with administered(registry_target) as admin:
        found = admin.protected_aliases(namespace)
    if as_json:
        echo_json([protected_json(each) for each in found])
        return
    columns = (Column("WHERE"), Column("ALIAS"), Column("TOKENS", folds=True))
    rows = [(f"{each.namespace}/{each.name or '*'}", each.alias, ", ".join(each.token_names) or "-") for each in found]
    echo_table(columns, rows, "no alias is protected; `weft alias protect NAMESPACE ALIAS` protects one")


def _place(where: str) -> tuple[str, str]:
    """(namespace, name), the name empty for all adapters of the namespace."""
    namespace, _, name = where.partition("/")
    return namespace, name
