"""`weft version`."""

from __future__ import annotations

import platform

import click

from weft import __version__
from weft_client.cli.options import json_option
from weft_client.cli.output import echo_fields, echo_json

_PACKAGES = ("grpcio", "protobuf", "torch", "transformers", "peft")


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of Weft and of what it runs on.

    \b
    Example:
      weft version --json
    """
    # Imported here: the help of all commands comes without it.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    versions: dict[str, str | None] = {"weft": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = installed(package)
        except PackageNotFoundError:
            versions[package] = None
    if as_json:
        echo_json(versions)
        return
    echo_fields((name, found or "not installed") for name, found in versions.items())
