"""`weft label`: a judge says which of two answers is better, and its preferences become training data."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import click

from weft_client.cli.artifacts import artifact_directory
from weft_client.cli.failure import needs_extra
from weft_client.cli.options import FiniteRange, json_option, quiet_option, registry_option
from weft_client.cli.output import echo_fields, echo_json


@click.command()
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--judge",
    required=True,
    metavar="BASE[+ARTIFACT]",
    help="Who decides: a stored base, or one that wears an artifact (a directory, or the reference of a version).",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where the result goes; new.")
@click.option(
    "--template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.yaml",
    help="How the judge is asked: prompt, with {prompt}, {first} and {second}; labels; chat. Default: Weft's own.",
)
@click.option(
    "--min-margin",
    type=FiniteRange(0, 1),
    default=0.0,
    show_default=True,
    help="Leave out pairs that the judge prefers by less: P(chosen) - P(rejected).",
)
@click.option("--merged", is_flag=True, help="Evaluate the adapter merged into the base.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@json_option
@quiet_option
@registry_option
@needs_extra("train")
def label(
    data: Path,
    judge: str,
    output: Path,
    template: Path | None,
    min_margin: float,
    merged: bool,
    dtype: str,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Let a model choose between two answers, for preference tuning (RLAIF).

    DATA has rows {"prompt", "response_a", "response_b"}. The judge is asked about each pair in both orders, and the
    probabilities of its two labels are averaged, which cancels a preference for a position; how often the orders
    disagree is reported. The output has rows {"prompt", "chosen", "rejected", "margin"}, which `weft train` takes with
    objective: {kind: dpo}.

    \b
    Example:
      weft label responses.jsonl --judge smol -o pairs.jsonl --min-margin 0.2
      weft label responses.jsonl --judge smol+runs/judge -o pairs.jsonl --template judge.yaml
    """
    base, plus, artifact = judge.partition("+")
    if not base or bool(plus) != bool(artifact):
        raise click.UsageError(f"--judge {judge!r} is no BASE or BASE+ARTIFACT")
    if merged and not artifact:
        raise click.UsageError("--merged: the judge wears no artifact that could be merged")
    from weft_trainer.api import label_pairs

    with ExitStack() as stack:
        worn = stack.enter_context(artifact_directory(artifact, registry_target, quiet)) if artifact else None
        found = label_pairs(
            data,
            output,
            base,
            artifact=worn,
            merged=merged,
            template=template,
            min_margin=min_margin,
            dtype=dtype,
            quiet=quiet,
        )
    if as_json:
        echo_json({"output": str(output), **asdict(found), "disagreement": found.disagreement})
        return
    fields = [
        ("output", str(output)),
        ("pairs", f"{found.written:,} of {found.rows:,}"),
        ("left out", f"{found.below_margin:,} with a margin of 0, or below {min_margin:g}"),
        ("disagreement", f"{found.disagreement:.1%} of the pairs are judged otherwise in the other order"),
        ("margin", f"{found.mean_margin:.4f} on average"),
    ]
    if found.too_long:
        fields.insert(3, ("too long", f"{found.too_long:,} do not fit the judge's context"))
    echo_fields(fields)
