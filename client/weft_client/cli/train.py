"""`weft train` and `weft eval`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weft_client.cli.artifacts import artifact_directory
from weft_client.cli.failure import Failure, needs_extra
from weft_client.cli.options import dtype_option, json_option, quiet_option, registry_option
from weft_client.cli.output import echo_fields, echo_json
from weft_client.cli.preflight import check_parts, check_publishing
from weft_client.cli.progress import reporter
from weft_client.cli.sources import opened
from weft_client.cli.views import version_json
from weft_registry.errors import PreconditionError, WeftError
from weft_registry.reference import AdapterName

if TYPE_CHECKING:
    from weft_registry.api import Version

_RESUME = "training.resume"
# As `weft_trainer.config.data` has them, which is not imported for them; a test sees to it.
FORMATS = ("prompt-completion", "messages", "alpaca", "sharegpt", "text")


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="CONFIG.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint: training.resume=true.")
@click.option("--print-config", is_flag=True, help="Print the whole configuration, defaults included, and do nothing.")
@click.option(
    "--publish", "adapter", metavar="NAMESPACE/NAME", help="Publish the artifact under this name when training ends."
)
@click.option("--tag", "tags", multiple=True, help="Name this version for ever; may be repeated.")
@click.option(
    "--alias", "aliases", multiple=True, help='Point this alias at it; may be repeated. "latest" always moves.'
)
@json_option
@quiet_option
@registry_option
@needs_extra("train")
def train(
    config: Path,
    overrides: tuple[str, ...],
    resume: bool,
    print_config: bool,
    adapter: str | None,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Train an adapter as CONFIG.yaml says. KEY=VALUE replaces one of its settings, dots reaching inside.

    Prints the directory of the artifact, which `weft push` takes; or publishes it, with --publish, --tag and
    --alias. Whether it can be published is found out before training. On Ctrl-C or SIGTERM a checkpoint is saved, which
    --resume goes on from.

    \b
    Example:
      weft train topics.yaml training.seed=1 adapter.r=16
      weft train topics.yaml --resume
      weft train topics.yaml adapter.r=16 --print-config
      weft train topics.yaml --publish acme/topics --tag v2 --alias candidate
    """
    if adapter is None and (tags or aliases):
        raise click.UsageError("--tag and --alias are for a version that is published: say where, with --publish")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not (key and equals):
            raise click.UsageError(f"{override!r} is not KEY=VALUE")
        if resume and key.strip() == _RESUME and value.strip().lower() in ("false", "no", "off"):
            raise click.UsageError(f"--resume is {_RESUME}=true, and {override} says otherwise: give one of the two")
    settings = [*overrides, *([f"{_RESUME}=true"] if resume else [])]
    if print_config:
        from weft_trainer.config.run import load

        effective = load(config, settings)
        if as_json:
            echo_json(effective.as_json())
        else:
            click.echo(effective.as_yaml(), nl=False)
        return
    from weft_trainer.api import train_from_file

    name = AdapterName.parse(adapter) if adapter is not None else None
    if name is not None:
        _check_publishing(config, settings, name, tags, aliases, registry_target)
    try:
        artifact = train_from_file(config, settings, reporter(quiet))
    except PreconditionError as error:
        if error.reason != "INTERRUPTED":
            raise
        words = _resuming(sys.argv[1:]) if "checkpoint" in error.metadata else sys.argv[1:]
        Failure(f"{error.message}: {shlex.join(['weft', *words])}").show()
        # As a shell reports a process that a signal ended.
        raise click.exceptions.Exit(128 + int(error.metadata["signal"])) from error
    published = _publish(artifact, name, tags, aliases, registry_target) if name is not None else None
    if as_json:
        echo_json({"artifact": str(artifact), **({"published": version_json(published)} if published else {})})
        return
    click.echo(artifact)
    if published is not None:
        click.echo(f"published {name}@{published.digest} as {', '.join((*published.tags, *published.aliases))}")


@click.command("eval")
@click.argument("artifact", metavar="ARTIFACT|REFERENCE")
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--base", metavar="NAME", help="The base model, where the artifact's own is not under WEFT_HOME by digest."
)
@click.option("--merged", is_flag=True, help="Evaluate the adapter merged into the base.")
@click.option("--rows", type=click.IntRange(min=1), help="Score only so many rows; default: all.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="What every row is; default: seen from its keys.")
@click.option(
    "--templates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.yaml",
    help="Write each row with a template of training and with a held-out one, and score the two apart.",
)
@click.option(
    "--stack-on",
    metavar="REFERENCE",
    multiple=True,
    help="A bottleneck adapter below this one, instead of what it was trained on; may be repeated, the lowest first. "
    '"none": nothing.',
)
@dtype_option
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
    form: str | None,
    templates: Path | None,
    stack_on: tuple[str, ...],
    dtype: str,
    as_json: bool,
    quiet: bool,
    registry_target: str | None,
) -> None:
    """Score an adapter on held-out examples: exact match, with greedy decoding.

    ARTIFACT is a directory, as `weft train` makes it; otherwise it is the reference of a published version. "-" scores
    the base alone, which --base then names. DATA is a file of any format that `weft train` reads.

    \b
    Example:
      weft eval ./runs/topics/artifact held-out.jsonl
      weft eval acme/topics:production held-out.jsonl --merged
      weft eval - held-out.jsonl --base smol
      weft eval ./runs/nli/artifact held-out.jsonl --templates nli.yaml
      weft eval ./runs/german/artifact books.jsonl --format text
      weft eval ./runs/qa-english held-out-german.jsonl --stack-on acme/german
    """
    if artifact == "-" and (base is None or merged):
        raise click.UsageError("the base alone, -, needs --base NAME, and has nothing to merge")
    if form is not None and templates is not None:
        raise click.UsageError("--templates decide what a row is; leave --format out")
    if artifact == "-" and stack_on:
        raise click.UsageError("--stack-on names what lies below an adapter; the base alone, -, is none")
    from weft_trainer.api import evaluate_artifact

    below = () if stack_on == ("none",) else stack_on or None
    found = nullcontext() if artifact == "-" else artifact_directory(artifact, registry_target, quiet)
    with found as directory:
        scores = evaluate_artifact(
            directory,
            data,
            base,
            merged,
            dtype=dtype,
            rows=rows,
            form=form,
            templates=templates,
            stack_on=below,
            report=reporter(quiet),
        )
    if as_json:
        echo_json(scores)
        return
    parts = scores.pop("parts", {})
    echo_fields((name, json.dumps(value)) for name, value in scores.items())
    for part, its_scores in parts.items():
        click.echo(f"\n{part}")
        echo_fields((name, json.dumps(value)) for name, value in its_scores.items())


def _check_publishing(
    config: Path,
    settings: Sequence[str],
    name: AdapterName,
    tags: Sequence[str],
    aliases: Sequence[str],
    registry_target: str | None,
) -> None:
    """Raises what publishing the artifact of this run would."""
    from weft_trainer.config.adapter import FusionOptions
    from weft_trainer.config.run import load_with_source, locating

    run, source = load_with_source(config, settings)
    with opened(registry_target) as registry:
        check_publishing(registry, name, tags, aliases)
        with locating(source):
            if isinstance(run.adapter, FusionOptions):
                check_parts(registry, name, run.adapter.parts)
            elif run.adapter is None and run.start is not None:
                check_parts(registry, name, _parts_of(run.start))


def _parts_of(start: str) -> list[str]:
    """What the adapter that a run begins at, and that decides its shape, is made over; of most kinds nothing."""
    from weft_registry import artifact
    from weft_registry.named import directory_of, or_directory
    from weft_registry.parts import parts_of

    try:
        directory = directory_of(start)
        if directory is not None:
            manifest = artifact.read(directory)
        else:
            # Where training looks for it, wherever its own artifact is published.
            with opened(None) as registry, or_directory(start):
                manifest = registry.resolve(start).manifest
    except WeftError as error:
        error.begin("start: ")
        raise
    return [str(part) for part in parts_of(manifest)]


def _resuming(words: Sequence[str]) -> list[str]:
    """The words of the command that goes on where the one with these stopped."""
    kept = [word for word in words if word != "--resume" and word.partition("=")[0].strip() != _RESUME]
    # Behind it nothing is an option.
    end = kept.index("--") if "--" in kept else len(kept)
    return [*kept[:end], "--resume", *kept[end:]]


def _publish(
    artifact: Path, name: AdapterName, tags: Sequence[str], aliases: Sequence[str], registry_target: str | None
) -> Version:
    from weft_registry.transfer import push

    try:
        with opened(registry_target) as registry:
            return push(registry, artifact, name, tags=tags, aliases=aliases).version
    except WeftError as error:
        again = " ".join(["weft push", str(artifact), str(name), *(f"--tag {t}" for t in tags)])
        again += "".join(f" --alias {alias}" for alias in aliases)
        raise Failure(f"trained, but not published: {error.message}; publish it with: {again}") from error
