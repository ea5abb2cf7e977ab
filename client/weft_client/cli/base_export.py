"""`weft base export`: a base model for software that knows no Weft."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import click

from weft_client.cli.failure import Failure, needs_extra
from weft_client.cli.options import json_option
from weft_client.cli.output import echo_json, size
from weft_client.cli.sources import bases


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["compressed-tensors"]),
    default="compressed-tensors",
    show_default=True,
    help="What stock vLLM and transformers load: int4 with integer zero points.",
)
@click.option("--cost/--no-cost", default=True, help="Measure what the format costs (needs the train extra).")
@json_option
@needs_extra("serve")
def export(name: str, directory: Path, form: str, cost: bool, as_json: bool) -> None:
    """Write a base model for software that knows no Weft, and say what that costs.

    Other formats have integer zero points where a base has float minima, so what is written is near the base and not
    the base. Its logits are compared with the exact ones on fixed prompts, in float32. To serve the exact base, and to
    merge QA-LoRA adapters, use `weft serve`.

    \b
    Example:
      weft base export smol ./smol-for-vllm
    """
    from weft_adapters.base.export_compressed import export_compressed_tensors, exported_weight
    from weft_adapters.base.export_cost import logits_cost
    from weft_adapters.base.load import StoredBase

    # Said first where the name is wrong, with the names there are.
    bases().get(name)
    base = StoredBase.open(bases().path(name))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Failure(f"{directory} exists and is not an empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        export_compressed_tensors(base, directory)
    except BaseException:
        # Half a model loads in some software.
        shutil.rmtree(directory)
        raise
    written = sum(file.stat().st_size for file in directory.iterdir())
    found = logits_cost(base, exported_weight) if cost else None
    if as_json:
        document = {"name": name, "directory": str(directory), "format": form, "size_bytes": written}
        echo_json({**document, "logits": asdict(found) if found else None})
        return
    click.echo(f"wrote {directory}: {form}, {size(written)}")
    if found:
        click.echo(
            f"logits differ from the exact base's by {found.mean:.3f} on average and {found.largest:.2f} at most, "
            f"where they spread by {found.spread:.2f}; the same most likely token at {found.same_first:.1%} of "
            f"{found.positions} positions"
        )
