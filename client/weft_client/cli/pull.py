"""`weft pull` and `weft export`: a published version becomes a directory, or a part of an OCI image layout."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weft_client.cli.options import json_option, quiet_option, registry_option
from weft_client.cli.output import echo_json
from weft_client.cli.progress import transfer_bar
from weft_client.cli.sources import opened
from weft_client.cli.views import version_json
from weft_registry.reference import Reference

if TYPE_CHECKING:
    from weft_registry.api import Version


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
@click.option("--to", "directory", type=click.Path(path_type=Path), help="A new directory, as PEFT writes it.")
@click.option(
    "--oci", "layout", type=click.Path(path_type=Path), help="An OCI image layout; a new one, or one to add to."
)
@click.option("--oci-tag", metavar="TAG", help="The tag in the layout. Default: the reference's own, or latest.")
@json_option
@quiet_option
@registry_option
def export(
    reference: str,
    directory: Path | None,
    layout: Path | None,
    oci_tag: str | None,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Write a version for other tools: as a plain PEFT directory (--to), or into an OCI image layout (--oci).

    LoRA and prefix adapters are PEFT directories as they are; a QA-LoRA adapter becomes the LoRA adapter that computes
    the same on the same base. In a layout every kind is a ModelPack artifact, file by file as it was published:
    `skopeo copy oci:LAYOUT:TAG docker://REGISTRY/...` or ORAS bring it to a container registry, and
    `weft import oci:LAYOUT:TAG` back, with the same digest.

    \b
    Example:
      weft export acme/topics:v2 --to ./topics-peft
      weft export acme/topics:v2 --oci ./layout
    """
    if (directory is None) == (layout is None):
        raise click.UsageError("say where to: --to DIRECTORY for a PEFT directory, or --oci LAYOUT")
    if layout is not None:
        _export_layout(reference, layout, oci_tag, registry_target, quiet, as_json)
        return
    assert directory is not None
    if oci_tag is not None:
        raise click.UsageError("--oci-tag is the tag in an OCI image layout: it goes with --oci")

    from weft_client.peft_export import export_peft

    with tempfile.TemporaryDirectory(prefix="weft-export-") as scratch:
        artifact = Path(scratch) / "artifact"
        version = fetch(reference, artifact, registry_target, quiet)
        export_peft(artifact, directory)
    _answer(version, directory, as_json)


def _export_layout(
    reference: str, layout: Path, tag: str | None, registry_target: str | None, quiet: bool, as_json: bool
) -> None:
    from weft_registry.exchange.oci_layout import check_writable, write_layout
    from weft_registry.reference import LATEST

    tag = tag or Reference.parse(reference).label or LATEST
    check_writable(layout)
    layout.parent.mkdir(parents=True, exist_ok=True)
    # Beside it: what is pulled becomes part of the layout by being renamed.
    with tempfile.TemporaryDirectory(prefix=f".{layout.name}-", dir=layout.parent) as scratch:
        artifact = Path(scratch) / "artifact"
        version = fetch(reference, artifact, registry_target, quiet)
        digest = write_layout(artifact, layout, tag)
    if as_json:
        echo_json({**version_json(version), "path": str(layout.resolve()), "tag": tag, "oci_digest": digest})
        return
    click.echo(f"{version.adapter}@{version.digest} is in {layout} as {tag} ({digest})")


def fetch(reference: str, directory: Path, registry_target: str | None, quiet: bool) -> Version:
    """Pulls a version, with a progress bar. Raises what `weft_registry.transfer.pull` raises."""
    from weft_registry.allocator import keep_freed_chunks
    from weft_registry.transfer import pull as receive

    keep_freed_chunks()
    with opened(registry_target) as registry:
        version = registry.resolve(reference)
        with transfer_bar(f"pulling {version.adapter}", version.size_bytes, quiet) as progress:
            return receive(registry, version, directory, progress)


def _answer(version: Version, directory: Path, as_json: bool) -> None:
    if as_json:
        echo_json({**version_json(version), "path": str(directory.resolve())})
        return
    click.echo(f"{version.adapter}@{version.digest} is in {directory}")
