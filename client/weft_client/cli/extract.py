"""`weft extract`: a fine-tuned model becomes a LoRA adapter over a base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from weft_client.cli.failure import needs_extra
from weft_client.cli.options import FiniteRange, json_option, quiet_option
from weft_client.cli.output import echo_fields, echo_json
from weft_client.cli.sources import bases

DEFAULT_RANK = 16


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where the result goes; new.")
@click.option("--base", "base_name", metavar="NAME", required=True, help="The base that serves the adapter.")
@click.option("--rank", type=click.IntRange(1, 1024), help="The highest rank at every module.")
@click.option(
    "--energy",
    type=FiniteRange(0, 1, min_open=True),
    help="Instead: keep this share of each difference's squared norm; ranks then differ.",
)
@click.option(
    "--from",
    "original",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="ORIGINAL",
    help="Take the difference to these float weights, from before the fine-tuning, instead of to the stored base.",
)
@click.option("--ignore-rest", is_flag=True, help="Leave changes behind that no LoRA can carry (embeddings, head).")
@click.option("--name", help="The adapter's name. Default: that of the output directory.")
@click.option("--license", "license_", default="", metavar="SPDX", help="The adapter's license.")
@json_option
@quiet_option
@needs_extra("serve")
def extract(
    checkpoint: Path,
    output: Path,
    base_name: str,
    rank: int | None,
    energy: float | None,
    original: Path | None,
    ignore_rest: bool,
    name: str | None,
    license_: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a fine-tuned model into a LoRA adapter, which `weft push` takes.

    CHECKPOINT is a directory with config.json and safetensors, fine-tuned from the base. The difference of every linear
    module is truncated to a low rank; what that leaves out is printed, and stands in the manifest. Changed norms before
    attention and MLP go into the linears after them; other changes (added tokens and a head of its own among them) are
    refused without --ignore-rest. Without --rank and --energy, the rank is 16.

    The difference to the stored base includes what rounding to int4 changed, which the adapter then corrects as far as
    its rank goes. With --from, all of the rank goes to what the fine-tuning learned.

    \b
    Example:
      weft extract ./my-finetuned-smol -o ./mine --base smol --rank 32
      weft extract ./my-finetuned-smol -o ./mine --base smol --energy 0.9 --from ./smol-original
    """
    if rank is not None and energy is not None:
        raise click.UsageError("--rank and --energy both say how much to keep: give one of the two")
    from weft_adapters.base.load import StoredBase
    from weft_adapters.extract_checkpoint import extract_checkpoint
    from weft_adapters.extraction import Truncation

    # Said first where the name is wrong, with the names there are.
    bases().get(base_name)
    found = extract_checkpoint(
        StoredBase.open(bases().path(base_name)),
        checkpoint,
        output,
        Truncation(rank=rank if energy is not None else rank or DEFAULT_RANK, energy=energy),
        original=original,
        ignore_rest=ignore_rest,
        name=name,
        license=license_,
        report=(lambda line: None) if quiet else (lambda line: click.echo(line, err=True)),
    )
    if found.unrelated:
        click.echo(
            f"warning: {checkpoint} has next to nothing in common with the base {base_name}, which is "
            f"{found.base_error:.0%} of its size from it; was it fine-tuned from another model?",
            err=True,
        )
    if as_json:
        echo_json(
            {
                "artifact": str(output),
                "digest": found.manifest.digest(),
                "size_bytes": found.manifest.size_bytes,
                "modules": len(found.ranks),
                "ranks": list(found.ranks),
                "error": found.error,
                "served_error": found.served_error,
                "base_error": found.base_error,
                "unrelated": found.unrelated,
                "folded_norms": list(found.folded),
                "left_behind": [asdict(change) for change in found.rest],
            }
        )
        return
    low, high = min(found.ranks), max(found.ranks)
    fields = [
        ("artifact", str(output)),
        ("modules", f"{len(found.ranks)}, rank {low}" + (f" to {high}" if high != low else "")),
        ("error", f"{found.error:.2%} of the difference"),
        ("served", f"{found.served_error:.2%} from the fine-tuned weights; the base alone: {found.base_error:.2%}"),
    ]
    if found.folded:
        fields.append(("norms", f"{len(found.folded)} folded into the linears after them"))
    if found.rest:
        fields.append(("left behind", ", ".join(map(str, found.rest))))
    echo_fields(fields)
