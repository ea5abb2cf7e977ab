"""`weft label`: a judge says which of two answers is better, and its preferences become training data."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weft_client.cli.artifacts import artifact_directory
from weft_client.cli.failure import Failure, needs_extra
from weft_client.cli.options import FiniteRange, dtype_option, json_option, quiet_option, registry_option
from weft_client.cli.output import echo_fields, echo_json
from weft_client.cli.progress import reporter

if TYPE_CHECKING:
    from weft_trainer.label import Labelled


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
@dtype_option
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
    objective: {kind: dpo}. Where not a single pair is left, nothing is written and the status is 1.

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
            report=reporter(quiet),
        )
    written = str(output) if found.written else None
    if as_json:
        echo_json({"output": written, **asdict(found), "disagreement": found.disagreement})
    else:
        echo_fields(_fields(written, found, min_margin))
    if written is None:
        raise Failure(f"{data}: {_why_nothing(found, min_margin)}; nothing was written")


def _fields(output: str | None, found: Labelled, min_margin: float) -> list[tuple[str, str]]:
    fields = [
        ("output", output or "none"),
        ("pairs", f"{found.written:,} of {found.rows:,}"),
        ("left out", f"{found.below_margin:,} with a margin of 0, or below {min_margin:g}"),
        ("disagreement", f"{found.disagreement:.1%} of the pairs are judged otherwise in the other order"),
        ("margin", f"{found.mean_margin:.4f} on average"),
    ]
    if found.too_long:
        fields.insert(3, ("too long", f"{found.too_long:,} do not fit the judge's context"))
    return fields


def _why_nothing(found: Labelled, min_margin: float) -> str:
    """What left no pair, and what to try."""
    if found.too_long == found.rows:
        return (
            f"none of the {found.rows:,} pairs fits the judge's context; shorten the prompts or the answers, ask for "
            "less around them with --template, or take a judge with a longer context"
        )
    asked = found.rows - found.too_long
    least = f"by {min_margin:g} or more" if min_margin else "at all"
    tries = ["ask otherwise, with --template", "take another judge"]
    if min_margin:
        tries.insert(0, f"lower --min-margin (the margin is {found.mean_margin:.4f} on average)")
    why = f"of {asked:,} pairs the judge prefers no answer {least}"
    if found.disagreed:
        why += f", and judges {found.disagreed:,} of them otherwise in the other order"
    return f"{why}; {', or '.join(tries)}"
