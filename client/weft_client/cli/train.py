"""`weft train` and `weft eval`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weft_client.cli.failure import Failure, needs_extra
from weft_client.cli.options import json_option, quiet_option, registry_option
from weft_client.cli.output import echo_fields, echo_json
from weft_client.cli.pull import fetch
from weft_registry.reference import Reference

if TYPE_CHECKING:
    from weft_trainer.progress import Reporter


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="CONFIG.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
@quiet_option
@needs_extra("train")
def train(config: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Train an adapter as CONFIG.yaml says. KEY=VALUE replaces one of its settings, dots reaching inside.

    Prints the directory of the artifact, which `weft push` takes.

    \b
    Example:
      weft train topics.yaml training.seed=1 adapter.r=16
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not (key and equals):
            raise click.UsageError(f"{override!r} is not KEY=VALUE")
    from weft_trainer.api import train_from_file

    artifact = train_from_file(config, list(overrides), _reporter(quiet))
    if as_json:
        echo_json({"artifact": str(artifact)})
        return
    click.echo(artifact)


@click.command("eval")
@click.argument("artifact", metavar="ARTIFACT|REFERENCE")
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--base", metavar="NAME", help="The base model, where the artifact's own is not under WEFT_HOME by digest."
)
@click.option("--merged", is_flag=True, help="Evaluate the adapter merged into the base.")
@click.option("--rows", type=click.IntRange(min=1), help="Score only so many rows; default: all.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@json_option
@quiet_option
@registry_option
@needs_extra("train")
def evaluate(
    artifact: str,
    data: Path,
    base: str | None,
    merged: bool,
    rows: int | None,
    dtype: str,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Score an adapter on JSONL data: exact match, with greedy decoding.

    ARTIFACT is a directory, as `weft train` makes it; otherwise it is the reference of a published version. "-" scores
    the base alone, which --base then names.

    \b
    Example:
      weft eval ./runs/topics/artifact held-out.jsonl
      weft eval acme/topics:production held-out.jsonl --merged
      weft eval - held-out.jsonl --base smol
    """
    if artifact == "-" and (base is None or merged):
        raise click.UsageError("the base alone, -, needs --base NAME, and has nothing to merge")
    from weft_trainer.api import evaluate_artifact

    with _directory(artifact, registry_target, quiet) as directory:
        scores = evaluate_artifact(directory, data, base, merged, dtype=dtype, rows=rows, report=_reporter(quiet))
    if as_json:
        echo_json(scores)
        return
    echo_fields((name, value if isinstance(value, str) else json.dumps(value)) for name, value in scores.items())


def _reporter(quiet: bool) -> Reporter | None:
    from weft_trainer.progress import QuietReporter

    return QuietReporter() if quiet else None


@contextmanager
def _directory(artifact: str, registry_target: str | None, quiet: bool) -> Generator[Path | None]:
    """An artifact's directory: the one that is there, or one pulled for as long as it is used; None for the base."""
    if artifact == "-":
        yield None
        return
    if Path(artifact).is_dir():
        yield Path(artifact)
        return
    if artifact.startswith((".", "/", "~")):
        raise Failure(f"no artifact directory at {artifact}")
    Reference.parse(artifact)
    with tempfile.TemporaryDirectory(prefix="weft-eval-") as scratch:
        directory = Path(scratch) / "artifact"
        fetch(artifact, directory, registry_target, quiet)
        yield directory
