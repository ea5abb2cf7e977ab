"""`weft registry serve`: the registry under WEFT_HOME for others, over gRPC and as a Hugging Face Hub."""

from __future__ import annotations

from typing import Any

import click

from weft_client.cli import upkeep
from weft_client.cli.access import access_options, taken
from weft_client.cli.options import FiniteRange, storage_options
from weft_client.cli.serve import memory
from weft_registry.serve.options import RegistryServeOptions

_DEFAULTS = RegistryServeOptions()


@click.group()
def registry() -> None:
    """Serve the registry by itself, without a base model; check it, back it up, restore it.

    \b
    Example:
      weft registry serve
      weft registry backup /mnt/backup/registry
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
@click.option(
    "--upstream",
    metavar="HOST:PORT",
    help="Mirror this registry: bring what is asked for and not held, serve what is held while it is away. The token "
    "for it is in WEFT_UPSTREAM_TOKEN, or from `weft login`.",
)
@click.option(
    "--max-held",
    "max_held_bytes",
    type=memory,
    metavar="SIZE",
    help="With --upstream: hold at most so much, as 200GiB; the files read least recently go first, and come again "
    "when somebody asks for them. Default: no bound.",
)
@storage_options
@access_options
def serve(**settings: Any) -> None:
    """Serve the registry under WEFT_HOME, until Ctrl-C: to Weft's own clients (`--registry HOST:PORT`), and to those of
    the Hugging Face Hub, which read and write over HTTP.

    Prints `http on HOST:PORT`, and `ready on HOST:PORT` once both ports answer.

    \b
    Example:
      weft registry serve
      weft registry serve --database postgresql://weft@db/weft --blobs s3://adapters/weft
      weft registry serve --upstream registry.example.org:50052 --max-held 200GiB
      HF_ENDPOINT=http://127.0.0.1:50080 hf download acme/topics --revision v1
    """
    if settings["max_held_bytes"] is not None and settings["upstream"] is None:
        raise click.UsageError("--max-held needs --upstream: only a mirror can bring again what goes")
    from weft_registry.serve.serving import serve as run

    access = taken(settings)
    run(RegistryServeOptions(access=access, **settings))


registry.add_command(upkeep.check)
registry.add_command(upkeep.backup)
registry.add_command(upkeep.restore)
