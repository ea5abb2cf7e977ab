"""One training run, from configuration to artifact: the order of things, and nothing else."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import set_seed

from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_trainer.config.run import TrainConfig
from weft_trainer.modeling.adapted import AdaptedModel, Outcome
from weft_trainer.modeling.recompute import recompute_layers
from weft_trainer.objectives.course import Source
from weft_trainer.objectives.score import Score
from weft_trainer.output.export import export
from weft_trainer.output.model_output import write_model
from weft_trainer.progress import Reporter
from weft_trainer.setup import Setup, set_up
from weft_trainer.training.interrupt import Stopped, StopRequest, not_begun
from weft_trainer.training.loop import Fitted, fit
from weft_trainer.training.memory import explaining_out_of_memory
from weft_trainer.training.rank import ALONE, Rank


def run(
    config: TrainConfig, report: Reporter, home: Home | None = None, rank: Rank = ALONE, scratch: Path | None = None
) -> Path:
    """What one of the training processes does; the first one writes. Temporary files are in `scratch`, else where the
    system wants them. Raises what `weft_trainer.train.train` raises."""
    request = StopRequest()
    # Of several processes the one that started them says what a signal does.
    with request.listening(report.message if rank.count == 1 else _nothing):
        try:
            return _run(config, report, home, rank, scratch, request)
        except Stopped:
            raise not_begun(request.signal, config) from None


def _nothing(_: str) -> None:
    pass


def _run(
    config: TrainConfig, report: Reporter, home: Home | None, rank: Rank, parent: Path | None, request: StopRequest
) -> Path:
    started = time.monotonic()
    setup = set_up(config, report, home, rank.device())
    with (
        explaining_out_of_memory(setup.config, setup.longest),
        tempfile.TemporaryDirectory(prefix="weft-train-", dir=parent) as temporary,
    ):
        scratch = Path(temporary)
        sources = setup.sources(scratch, report)
        model = _attach(setup, sources, scratch, report)
        # From here to the end a signal comes when it may, not where it is: something could be lost.
        request.finish("finishing this step, then saving")
        fitted = _fit(setup, model, sources, scratch, report, request, rank)
        if not rank.writes:
            return config.output
        try:
            with request.at_once():
                outcome, fitted = _outcome(setup, model, fitted, sources, report)
        except Stopped:
            raise fitted.ending.stopped(request.signal) from None
        request.finish("writing the artifact")
        manifest = _write(setup, outcome, fitted)
    took = f"{time.monotonic() - started:.0f} s"
    report.message(f"{config.output}: {manifest.size_bytes:,} bytes, {fitted.steps} steps, {took}")
    if fitted.trained is not None:
        report.message(f"held out, before extraction: {fitted.trained.describe()}")
    if fitted.score is not None:
        report.message(f"held out: {fitted.score.describe()}")
    return config.output


def _attach(setup: Setup, sources: Sequence[Source], scratch: Path, report: Reporter) -> AdaptedModel:
    """The base wearing an adapter with its first values, and its objective."""
    config = setup.config
    base = setup.base()
    setup.course.before(base, sources, scratch, report)
    set_seed(config.training.seed)
    if config.adapter is None:
        model = setup.shape.method.bare(base, setup.shape.params)
    else:
        model = setup.shape.method.attach(base, setup.shape.params, config.adapter, setup.tokenizer)
    if setup.shape.first is not None:
        model.restore(setup.shape.first.tensors)
    model.objective = setup.course.begin(model, sources, report)
    if config.training.gradient_checkpointing:
        recompute_layers(model.base)
    count = sum(parameter.numel() for parameter in model.trainable().values())
    report.message(f"{config.method} on {config.base}: {count:,} trainable parameters, layers from {setup.first_layer}")
    return model


def _fit(
    setup: Setup,
    model: AdaptedModel,
    sources: Sequence[Source],
    scratch: Path,
    report: Reporter,
    request: StopRequest,
    rank: Rank,
) -> Fitted:
    data, course = setup.data, setup.course
    evaluate = None if data.held_out is None else partial(_score, setup, model, sources, report)
    order = None if data.plan is None else data.plan.rows
    batches = course.batches(sources[0], order)
    count = course.count(data.train_examples) if order is None else len(order)
    steps = None if data.plan is None else data.plan.steps
    config, identity = setup.config, setup.identity
    return fit(model, batches, count, evaluate, config, identity, scratch, report, request, rank, planned=steps)


def _outcome(
    setup: Setup, model: AdaptedModel, fitted: Fitted, sources: Sequence[Source], report: Reporter
) -> tuple[Outcome, Fitted]:
    """What the artifact will hold; and how the run ended, where an adapter that only approximates has its own score."""
    outcome = model.outcome(setup.shape.params)
    if not outcome.exact and setup.data.held_out is not None:
        served = setup.shape.method.bare(setup.base(), outcome.params)
        served.restore(outcome.tensors)
        fitted = replace(fitted, score=_score(setup, served, sources, report), trained=fitted.score)
    return outcome, fitted


def _write(setup: Setup, outcome: Outcome, fitted: Fitted) -> Manifest:
    """Writes the artifact, and the whole model where it is kept."""
    config, stored = setup.config, setup.stored
    if setup.model_directory is not None and outcome.read is not None:
        write_model(stored, setup.model_directory, outcome.read)
    origin = {} if setup.start is None else setup.start.provenance()
    # After the teacher's: what it grew from comes before who taught it.
    extra = {**outcome.provenance, **setup.course.provenance(), **origin}
    return export(config, stored, outcome.params, outcome.tensors, setup.data.datasets, fitted, extra)


def _score(setup: Setup, model: AdaptedModel, sources: Sequence[Source], report: Reporter) -> Score:
    data = setup.data
    assert data.held_out is not None, "asked only with held-out examples"
    return setup.course.score(model, sources[1], data.held_out, report, data.groups)
