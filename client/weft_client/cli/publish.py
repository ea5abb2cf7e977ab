"""`weft push`: a directory becomes a published version."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from weft_client.cli.failure import Failure
from weft_client.cli.options import json_option, quiet_option, registry_option
from weft_client.cli.output import echo_json, size
from weft_client.cli.progress import transfer_bar
from weft_client.cli.sources import bases, opened
from weft_client.cli.views import version_json
from weft_registry.manifest import FILE_NAME as MANIFEST
from weft_registry.reference import AdapterName


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.option("--tag", "tags", multiple=True, help="Name this version for ever; may be repeated.")
@click.option(
    "--alias", "aliases", multiple=True, help='Point this alias at it; may be repeated. "latest" always moves.'
)
@click.option("--base", "base_name", metavar="NAME", help="The base it was trained on: for a PEFT directory.")
@click.option(
    "--pooling",
    type=click.Choice(["peft", "mean", "sum"]),
    help="How a QA-LoRA file pools its inputs; default: as PEFT does. For a PEFT directory.",
)
@json_option
@quiet_option
@registry_option
def push(
    directory: Path,
    adapter: str,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    base_name: str | None,
    pooling: str | None,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Publish a directory as a version of NAMESPACE/NAME.

    The directory is an artifact, as `weft train` makes it, or a plain PEFT directory (or a bottleneck adapter as
    AdapterHub saves it, in safetensors); then --base says which base it was trained on. The same content again
    publishes nothing new, and says so.

    \b
    Example:
      weft push ./runs/topics/artifact acme/topics --tag v1 --alias production
      weft push ./my-peft-lora acme/mine --base smol
    """
    from weft_registry.allocator import keep_freed_chunks
    from weft_registry.transfer import push as send

    keep_freed_chunks()
    name = AdapterName.parse(adapter)
    with _artifact(directory, name, base_name, pooling) as ready, opened(registry_target) as registry:
        total = sum(file.stat().st_size for file in ready.iterdir() if file.name != MANIFEST)
        with transfer_bar(f"pushing {name}", total, quiet) as progress:
            published = send(registry, ready, name, tags=tags, aliases=aliases, progress=progress)
    version = published.version
    if as_json:
        echo_json({**version_json(version), "existing": published.existing})
        return
    labels = ", ".join((*version.tags, *version.aliases))
    verb = "already published" if published.existing else "published"
    click.echo(f"{verb} {name}@{version.digest} ({size(version.size_bytes)}) as {labels}")


@contextmanager
def _artifact(directory: Path, name: AdapterName, base_name: str | None, pooling: str | None) -> Generator[Path]:
    """The artifact to push: the directory itself, or for one of PEFT's or AdapterHub's a copy that has a manifest."""
    if (directory / MANIFEST).is_file():
        _check_base(directory, base_name, pooling)
        yield directory
        return
    if base_name is None:
        known = ", ".join(bases().names()) or "none yet: `weft base add NAME SOURCE`"
        raise Failure(
            f"{directory} has no {MANIFEST}: for a plain PEFT directory, say with --base NAME which base it was "
            f"trained on (there are: {known})"
        )
    from weft_registry.adapterhub_format import import_adapterhub, is_saved_by_adapterhub
    from weft_registry.peft_format import import_directory

    spec = bases().get(base_name)
    with tempfile.TemporaryDirectory(prefix="weft-push-") as scratch:
        if is_saved_by_adapterhub(directory):
            if pooling is not None:
                raise click.UsageError(f"--pooling is for plain PEFT directories; {directory} is one of AdapterHub's")
            yield import_adapterhub(directory, spec, Path(scratch) / "artifact", name=name.name)
            return
        yield import_directory(directory, spec, Path(scratch) / "artifact", name=name.name, pooling=pooling or "peft")


def _check_base(directory: Path, base_name: str | None, pooling: str | None) -> None:
    """An artifact's manifest has said both already: what contradicts it is refused, never ignored."""
    from weft_registry.artifact import read

    if pooling is not None:
        raise click.UsageError(f"--pooling is for plain PEFT directories; {directory} has an {MANIFEST}")
    if base_name is not None:
        ours = bases().get(base_name).fingerprint
        read(directory).base.check_is(ours, str(directory), f"--base {base_name}", "leave --base out")
