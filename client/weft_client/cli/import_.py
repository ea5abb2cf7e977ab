"""`weft import`: an adapter from a Hugging Face Hub or an OCI image layout becomes a published version."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weft_client.cli.options import json_option, quiet_option, registry_option
from weft_client.cli.output import echo_json, size
from weft_client.cli.progress import transfer_bar
from weft_client.cli.sources import bases, opened
from weft_client.cli.views import version_json
from weft_registry.reference import AdapterName

if TYPE_CHECKING:
    from weft_registry.api import Published, RegistryApi
    from weft_registry.exchange.adoption import Choice

Bring = Callable[[Path], Path]
"""Makes an artifact's directory under a scratch directory."""


@click.command("import")
@click.argument("source", metavar="SOURCE")
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.option("--tag", "tags", multiple=True, help="Name this version for ever; may be repeated.")
@click.option(
    "--alias", "aliases", multiple=True, help='Point this alias at it; may be repeated. "latest" always moves.'
)
@click.option(
    "--all-tags", is_flag=True, help="Of a hub's repository: every tag under its own name, then the default branch."
)
@click.option(
    "--base",
    metavar="NAME",
    help="The stored base that it is for. Default: the one of the name in the adapter's configuration.",
)
@click.option(
    "--pooling",
    type=click.Choice(["peft", "mean", "sum"]),
    help="How a QA-LoRA file pools its inputs; default: as PEFT does. For a PEFT directory.",
)
@json_option
@quiet_option
@registry_option
def import_adapter(
    source: str,
    adapter: str,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    all_tags: bool,
    base: str | None,
    pooling: str | None,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Publish an adapter from elsewhere as a version of NAMESPACE/NAME.

    SOURCE is `hf:ORG/REPO` or `hf:ORG/REPO@REVISION` on a Hugging Face Hub (HF_ENDPOINT says on which, HF_TOKEN who
    asks), or `oci:DIRECTORY` or `oci:DIRECTORY:TAG`, an OCI image layout as `weft export --oci` writes it. What was
    published by Weft stays the version that it is, digest and all. For PEFT's and AdapterHub's adapters a manifest is
    made, which says where they come from; the same commit again publishes nothing new, and says so.

    \b
    Example:
      weft import hf:acme/topics-lora@v2 acme/topics --tag v2 --base smol
      weft import oci:./layout:v1 acme/topics --tag v1
    """
    from weft_registry.exchange.adoption import Choice

    name = AdapterName.parse(adapter)
    choice = Choice(base, pooling or "peft")
    if source.startswith("hf:"):
        wanted = _from_hub(source, name, choice, tags, aliases, all_tags, quiet)
    elif source.startswith("oci:"):
        if all_tags:
            raise click.UsageError("--all-tags is for repositories on a hub; of a layout, import one tag after another")
        wanted = [(tags, aliases, _from_layout(source, name, choice))]
    else:
        raise click.UsageError(f"{source[:100]!r} is no source: expected hf:ORG/REPO[@REVISION] or oci:DIRECTORY[:TAG]")
    with opened(registry_target) as registry:
        done = [_publish(registry, bring, name, of_tags, of_aliases, quiet) for of_tags, of_aliases, bring in wanted]
    if as_json:
        documents = [{**version_json(one.version), "existing": one.existing} for one in done]
        echo_json(documents if all_tags else documents[0])
        return
    for one in done:
        version = one.version
        verb = "already published" if one.existing else "imported"
        labels = ", ".join((*version.tags, *version.aliases))
        click.echo(f"{verb} {name}@{version.digest} ({size(version.size_bytes)}) as {labels}")


def _from_hub(
    source: str,
    name: AdapterName,
    choice: Choice,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    all_tags: bool,
    quiet: bool,
) -> list[tuple[tuple[str, ...], tuple[str, ...], Bring]]:
    from weft_registry.exchange.adoption import adopt
    from weft_registry.exchange.hub_import import Hub, HubSource

    _show_downloads(quiet)
    asked = HubSource.parse(source)
    if all_tags and asked.revision:
        raise click.UsageError("--all-tags brings every tag: leave @REVISION out")
    hub = Hub(os.environ.get("HF_ENDPOINT"))

    def bring(at: HubSource) -> Bring:
        def run(scratch: Path) -> Path:
            snapshot = hub.snapshot(at)
            files = hub.download(snapshot, scratch)
            return adopt(files, scratch / "artifact", name.name, hub.origin(snapshot), bases(), choice)

        return run

    if not all_tags:
        return [(tags, aliases, bring(asked))]
    # The default branch comes last, and so `latest` is what it is there.
    found = [((tag,), (), bring(HubSource(asked.repo, commit))) for tag, commit in hub.tags(asked).items()]
    return [*found, (tags, aliases, bring(asked))]


def _from_layout(source: str, name: AdapterName, choice: Choice) -> Bring:
    from weft_registry.exchange.adoption import adopt
    from weft_registry.exchange.hub_import import MAX_BYTES
    from weft_registry.exchange.oci_layout import origin_of, read_layout

    text = source.removeprefix("oci:")
    head, colon, tag = text.rpartition(":")
    # As skopeo reads it; a directory may have a colon in its name, too.
    layout, tag = (Path(text), "") if not colon or Path(text).is_dir() else (Path(head), tag)

    def run(scratch: Path) -> Path:
        files = read_layout(layout, tag, scratch / "files", MAX_BYTES)
        return adopt(files, scratch / "artifact", name.name, origin_of(layout, tag), bases(), choice)

    return run


def _publish(
    registry: RegistryApi,
    bring: Bring,
    name: AdapterName,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    quiet: bool,
) -> Published:
    from weft_registry.artifact import MANIFEST
    from weft_registry.transfer import push

    with tempfile.TemporaryDirectory(prefix="weft-import-") as scratch:
        ready = bring(Path(scratch))
        total = sum(file.stat().st_size for file in ready.iterdir() if file.name != MANIFEST)
        with transfer_bar(f"publishing {name}", total, quiet) as progress:
            return push(registry, ready, name, tags=tags, aliases=aliases, progress=progress)


def _show_downloads(quiet: bool) -> None:
    """The hub's own bars, where somebody watches."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
