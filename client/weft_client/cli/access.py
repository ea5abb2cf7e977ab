"""The options of both servers that say who may do what, and whether it is encrypted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from weft_registry.access.options import AccessOptions

F = TypeVar("F", bound=Callable[..., Any])


def access_options(function: F) -> F:
    """`--auth`, `--anonymous-read`, `--tls-cert`, `--tls-key`, `--tls-client-ca`."""
    path = click.Path(path_type=Path)
    for option in reversed(
        (
            click.option("--auth", is_flag=True, help="Ask every caller for a token; `weft token create` makes them."),
            click.option("--anonymous-read", is_flag=True, help="With --auth: who says no token may read."),
            click.option("--tls-cert", type=path, metavar="FILE", help="Serve over TLS: the certificate, in PEM."),
            click.option("--tls-key", type=path, metavar="FILE", help="Its private key, in PEM, unencrypted."),
            click.option(
                "--tls-client-ca",
                type=path,
                metavar="FILE",
                help="Ask every client for a certificate by one of these authorities (mTLS).",
            ),
        )
    ):
        function = option(function)
    return function


def taken(settings: dict[str, Any]) -> AccessOptions:
    """Takes the options out of a command's settings. Raises `InvalidInputError` for what contradicts itself, and for
    files that are not what they should be."""
    from weft_registry.wire.tls import tls_files

    files = tls_files(settings.pop("tls_cert"), settings.pop("tls_key"), settings.pop("tls_client_ca"))
    return AccessOptions(settings.pop("auth"), settings.pop("anonymous_read"), files)
