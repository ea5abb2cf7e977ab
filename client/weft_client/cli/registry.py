"""`weft registry serve`: the registry under WEFT_HOME for others, over gRPC and as a Hugging Face Hub."""

from __future__ import annotations

from typing import Any

import click

from weft_client.cli.options import FiniteRange
from weft_registry.serve.options import RegistryServeOptions

_DEFAULTS = RegistryServeOptions()


@click.group()
def registry() -> None:
    """Serve the registry by itself, without a base model.

    \b
    Example:
      weft registry serve
    """


@registry.command()
@click.option("--host", default=_DEFAULTS.host, show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=_DEFAULTS.port,
    show_default=True,
    help="0 picks a free one.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=_DEFAULTS.http_port,
    show_default=True,
    help="Answer Hugging Face clients (HF_ENDPOINT=http://HOST:PORT) on this port, too; 0 picks a free one.",
)
@click.option(
    "--grace",
    "grace_s",
    type=FiniteRange(min=0),
    default=_DEFAULTS.grace_s,
    show_default=True,
    metavar="SECONDS",
    help="How long running requests may go on when the server is stopped.",
)
def serve(**settings: Any) -> None:
    """Serve the registry under WEFT_HOME, until Ctrl-C: to Weft's own clients (`--registry HOST:PORT`), and to those of
    the Hugging Face Hub, which read it over HTTP.

    Prints `http on HOST:PORT`, and `ready on HOST:PORT` once both ports answer.

    \b
    Example:
      weft registry serve
      HF_ENDPOINT=http://127.0.0.1:50080 hf download acme/topics --revision v1
    """
    from weft_registry.serve.serving import serve as run

    run(RegistryServeOptions(**settings))
