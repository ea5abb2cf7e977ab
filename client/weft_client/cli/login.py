"""`weft login`, `weft logout`, `weft whoami`: the token that this machine's user says to a registry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from weft_client.cli.failure import Failure
from weft_client.cli.options import json_option
from weft_client.cli.output import echo_fields, echo_json, moment, timestamp

if TYPE_CHECKING:
    from weft_registry.api import Identity

F = TypeVar("F", bound=Callable[..., Any])


def address_option(function: F) -> F:
    """`--registry`, which must be said one way or the other: the embedded registry asks nobody."""
    return click.option(
        "--registry",
        "address",
        envvar="WEFT_REGISTRY",
        required=True,
        metavar="HOST:PORT",
        help="The registry server (or WEFT_REGISTRY); grpcs://HOST:PORT over TLS.",
    )(function)


@click.command()
@address_option
@click.option("--token-stdin", is_flag=True, help="Read the token from stdin instead of asking for it.")
@json_option
def login(address: str, token_stdin: bool, as_json: bool) -> None:
    """Remember a token for a registry.

    The registry is asked whose it is, and it is written to WEFT_HOME/credentials.json, which only you can read. From
    then on every command that names this registry says it. WEFT_TOKEN, where it is set, goes before it.

    \b
    Example:
      weft login --registry registry.example:50052
      weft login --registry grpcs://registry.example:50052 --token-stdin < token
    """
    from weft_registry.home import Home
    from weft_registry.remote.registry import RemoteRegistry
    from weft_registry.wire.login import LoginFile

    token = (sys.stdin.readline() if token_stdin else click.prompt("Token", hide_input=True, err=True)).strip()
    if not token:
        raise Failure("no token: an administrator makes one with `weft token create`")
    registry = RemoteRegistry(address, token=token)
    try:
        identity = registry.who_am_i()
    finally:
        registry.close()
    LoginFile(Home.from_environment()).store(address, token)
    if as_json:
        echo_json(_identity_json(address, identity))
        return
    click.echo(f"{address}: you are {identity.name}: {_rights(identity)}")


@click.command()
@address_option
@json_option
def logout(address: str, as_json: bool) -> None:
    """Forget the token for a registry. It stays valid: `weft token revoke` ends it.

    \b
    Example:
      weft logout --registry registry.example:50052
    """
    from weft_registry.home import Home
    from weft_registry.wire.login import LoginFile

    if not LoginFile(Home.from_environment()).remove(address):
        raise Failure(f"no token for {address} was stored")
    if as_json:
        echo_json({"registry": address})
        return
    click.echo(f"{address}: forgotten")


@click.command()
@address_option
@json_option
def whoami(address: str, as_json: bool) -> None:
    """Say who you are to a registry, and what you may do there.

    \b
    Example:
      weft whoami --registry registry.example:50052
    """
    from weft_registry.remote.registry import RemoteRegistry

    registry = RemoteRegistry(address)
    try:
        identity = registry.who_am_i()
    finally:
        registry.close()
    if as_json:
        echo_json(_identity_json(address, identity))
        return
    fields = [("name", identity.name), ("may", _rights(identity))]
    if identity.expires_at:
        fields.append(("expires", moment(identity.expires_at)))
    echo_fields(fields)


def _identity_json(address: str, identity: Identity) -> dict[str, Any]:
    return {
        "registry": address,
        "name": identity.name,
        "scopes": sorted(identity.scopes),
        "namespaces": sorted(identity.namespaces),
        "expires_at": timestamp(identity.expires_at) if identity.expires_at else None,
    }


def _rights(identity: Identity) -> str:
    where = "everywhere" if "*" in identity.namespaces else f"in {', '.join(sorted(identity.namespaces))}"
    return f"{', '.join(sorted(identity.scopes)) or 'nothing'} {where}"
