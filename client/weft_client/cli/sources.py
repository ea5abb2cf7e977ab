"""Where commands get what they work on: the registry, the inference server, the stored base models.

Everything heavy is imported on use: gRPC only for what is remote, SQL only for the embedded registry.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from weft_client.cli.output import printable
from weft_registry.home import Home

if TYPE_CHECKING:
    from weft_client.inference import InferenceClient
    from weft_registry.admin_api import RegistryAdminApi
    from weft_registry.api import RegistryApi
    from weft_registry.base import BaseStore


@contextmanager
def opened(target: str | None) -> Generator[RegistryApi]:
    """The registry at HOST:PORT, or the embedded one; closed at the end. Says on stderr where a mirror answered for one
    that is away."""
    from weft_registry.transfer import open_registry

    with closing(open_registry(home(), target)) as registry:
        try:
            yield registry
        finally:
            if registry.stale_note:
                click.echo(f"note: this may be out of date: {printable(registry.stale_note)}", err=True)


@contextmanager
def administered(target: str | None) -> Generator[RegistryAdminApi]:
    """The administration of the registry at HOST:PORT, or of the embedded one; closed at the end."""
    from weft_registry.transfer import open_admin

    with closing(open_admin(home(), target)) as admin:
        yield admin


@contextmanager
def connected(target: str | None) -> Generator[InferenceClient]:
    """The inference server at HOST:PORT, or the default one; closed at the end."""
    from weft_client.inference import InferenceClient

    with InferenceClient(target) as client:
        yield client


def home() -> Home:
    """WEFT_HOME."""
    return Home.from_environment()


def bases() -> BaseStore:
    """The base models under WEFT_HOME."""
    from weft_registry.base import BaseStore

    return BaseStore(home().bases)
