"""`weft combine`: adapters merged into one."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path

import click

from weft_client.cli.artifacts import artifact_directory
from weft_client.cli.failure import Failure, needs_extra
from weft_client.cli.options import FiniteRange, json_option, quiet_option, registry_option
from weft_client.cli.output import echo_json, size
from weft_client.cli.sources import bases

METHODS = (
    "linear",
    "cat",
    "svd",
    "ties",
    "dare_linear",
    "dare_ties",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
)


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="ARTIFACT|REFERENCE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Where the result goes; new.")
@click.option("--weights", metavar="W,W,...", help="One for each adapter, in order. Default: 1 for each.")
@click.option("--method", type=click.Choice(METHODS), default="cat", show_default=True, help="How they are merged.")
@click.option(
    "--density",
    type=FiniteRange(0, 1, min_open=True),
    help="The share of entries that is kept; ties and dare need it.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes what is drawn at random repeatable.")
@click.option("--rank", type=click.IntRange(1, 1024), help="The highest rank at every module.")
@click.option("--name", help="The adapter's name. Default: that of the output directory.")
@click.option("--license", "license_", metavar="SPDX", help="The adapter's license.")
@json_option
@quiet_option
@registry_option
@needs_extra("serve")
def combine(
    references: tuple[str, ...],
    output: Path,
    weights: str | None,
    method: str,
    density: float | None,
    seed: int | None,
    rank: int | None,
    name: str | None,
    license_: str | None,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Merge LoRA or QA-LoRA adapters of one base into one adapter, which `weft push` takes.

    cat is the exact weighted sum, its rank the sum of the ranks; svd is that sum truncated to --rank, or to the highest
    rank of any part. linear adds the factors apart, which is cheap and rough. ties (arXiv:2306.01708) keeps the largest
    entries, elects a sign for each and averages those that agree; dare (arXiv:2311.03099) drops entries at random, the
    same ones for the same --seed (0 without it), and rescales the others. Those merge the factors, as PEFT does; with
    _svd they merge the deltas, as their papers do. The manifest names the parts by digest, and has their license if it
    is one.

    \b
    Example:
      weft combine acme/topics:v2 acme/tone:v1 -o ./both --weights 0.7,0.3
      weft combine ./a ./b ./c -o ./all --method ties_svd --density 0.2 --rank 16
    """
    _check_apart(references)
    numbers = _weights(weights, len(references))
    from weft_adapters.combination import Recipe
    from weft_adapters.combine_artifacts import Part, combine_artifacts
    from weft_registry import artifact

    recipe = Recipe(method, density, seed, rank)
    with ExitStack() as stack:
        directories = [stack.enter_context(artifact_directory(r, registry_target, quiet)) for r in references]
        wanted = artifact.read(directories[0]).base
        base = bases().by_weights(wanted.weights_sha256)
        if base is None:
            raise Failure(
                f"the base {wanted.id} with weights {wanted.weights_sha256} is not here; add it with `weft base add`"
            )
        parts = [Part(d, r, w) for d, r, w in zip(directories, references, numbers, strict=True)]
        manifest = combine_artifacts(parts, recipe, base[1], output, name=name, license=license_)
    if as_json:
        echo_json(
            {
                "artifact": str(output),
                "digest": manifest.digest(),
                "kind": manifest.kind,
                "size_bytes": manifest.size_bytes,
                "parts": manifest.provenance["parts"],
            }
        )
        return
    click.echo(f"wrote {output}: {manifest.kind}, {size(manifest.size_bytes)}, of {len(parts)} by {method}")


def _check_apart(references: tuple[str, ...]) -> None:
    """Requests take several adapters as one string; here each is an argument, which its weight is no part of."""
    for text in references:
        if ("*" in text or "+" in text) and not text.startswith((".", "/", "~")) and not Path(text).is_dir():
            raise click.UsageError(
                f"{text!r}: name each adapter by itself, and say with --weights how much each counts, in their order, "
                "such as --weights 0.7,0.3"
            )


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--weights {text!r}: expected numbers, such as 0.7,0.3") from None
    if len(numbers) != count:
        raise click.UsageError(f"--weights: {len(numbers)} for {count} adapters")
    if not all(math.isfinite(number) for number in numbers):
        raise click.UsageError(f"--weights {text!r}: expected finite numbers")
    return numbers
