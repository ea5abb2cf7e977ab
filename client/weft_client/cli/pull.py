"""`weft pull` and `weft export`: a published version becomes a directory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from weft_client.cli.options import json_option, quiet_option, registry_option
from weft_client.cli.output import echo_json
from weft_client.cli.progress import transfer_bar
from weft_client.cli.sources import opened
from weft_client.cli.views import version_json
from weft_registry.api import Version
from weft_registry.reference import Reference


@click.command()
@click.argument("reference")
@click.option(
    "--to", "directory", type=click.Path(path_type=Path), help="Default: a directory named as the adapter is."
)
@json_option
@quiet_option
@registry_option
def pull(reference: str, directory: Path | None, as_json: bool, quiet: bool, registry_target: str | None) -> None:
    """Bring a version to a directory: every byte verified, or nothing.

    \b
    Example:
      weft pull acme/topics:production --to ./topics
    """
    destination = directory or Path(Reference.parse(reference).adapter.name)
    version = fetch(reference, destination, registry_target, quiet)
    _answer(version, destination, as_json)


@click.command()
@click.argument("reference")
@click.option("--to", "directory", type=click.Path(path_type=Path), required=True, help="New.")
@json_option
@quiet_option
@registry_option
def export(reference: str, directory: Path, as_json: bool, quiet: bool, registry_target: str | None) -> None:
    """Write a version as a plain PEFT directory, for other tools.

    LoRA and prefix adapters are PEFT directories as they are; a QA-LoRA adapter becomes the LoRA adapter that computes
    the same on the same base.

    \b
    Example:
      weft export acme/topics:v2 --to ./topics-peft
    """
    from weft_client.peft_export import export_peft

    with tempfile.TemporaryDirectory(prefix="weft-export-") as scratch:
        artifact = Path(scratch) / "artifact"
        version = fetch(reference, artifact, registry_target, quiet)
        export_peft(artifact, directory)
    _answer(version, directory, as_json)


def fetch(reference: str, directory: Path, registry_target: str | None, quiet: bool) -> Version:
    """Pulls a version, with a progress bar. Raises what `weft_registry.transfer.pull` raises."""
    from weft_registry.transfer import pull as receive

    with opened(registry_target) as registry:
        version = registry.resolve(reference)
        with transfer_bar(f"pulling {version.adapter}", version.size_bytes, quiet) as progress:
            return receive(registry, version, directory, progress)


def _answer(version: Version, directory: Path, as_json: bool) -> None:
    if as_json:
        echo_json({**version_json(version), "path": str(directory.resolve())})
        return
    click.echo(f"{version.adapter}@{version.digest} is in {directory}")
