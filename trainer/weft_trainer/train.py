"""One training run, from configuration to artifact: the order of things, and nothing else."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import set_seed

from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_trainer import nf4
from weft_trainer.batches import StateBatches, TokenBatches
from weft_trainer.cached_layers import cache_states
from weft_trainer.config import TrainConfig
from weft_trainer.course import course_of
from weft_trainer.data import BaseTokenizer
from weft_trainer.export import check_output, export
from weft_trainer.journal import check_tensorboard
from weft_trainer.loop import check_training, fit
from weft_trainer.memory import explaining_out_of_memory
from weft_trainer.methods import METHODS, over
from weft_trainer.model import build
from weft_trainer.model_output import model_output, write_model
from weft_trainer.optimizers import optim_name
from weft_trainer.options import FusionOptions
from weft_trainer.parallel import check_devices, train_together
from weft_trainer.parts import find_parts
from weft_trainer.prepare import prepare
from weft_trainer.progress import Reporter
from weft_trainer.rank import ALONE, Rank
from weft_trainer.recompute import recompute_layers
from weft_trainer.score import Score
from weft_trainer.worn import open_base

_SHORT = 128
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def train(config: TrainConfig, report: Reporter, home: Home | None = None) -> Path:
    """Trains one adapter, in as many processes as `training.devices` says, and returns the artifact's directory.

    Raises the errors of `weft_registry.errors`: `NotFoundError` for a base or file that is not there,
    `InvalidInputError` for a configuration or data that cannot be, `PreconditionError` when training diverges, for what
    is not installed, and for a run that a signal stopped (after saving), `ExhaustedError` when memory runs out.
    """
    check_devices(config.training.devices)
    if config.training.devices > 1:
        return train_together(config, report, home)
    return run(config, report, home)


def run(config: TrainConfig, report: Reporter, home: Home | None = None, rank: Rank = ALONE) -> Path:
    """What one of the training processes does; the first one writes. Raises what `train` raises."""
    started = time.monotonic()
    check_output(config.output)
    kept = model_output(config)
    optim_name(config)
    nf4.check(config)
    if config.tensorboard is not None:
        check_tensorboard()
    stored = open_base(config.base, home)
    device = rank.device()
    course = course_of(config, stored, home, device)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    data = prepare(config, tokenizer)
    for text in (*(dataset.describe() for dataset in data.datasets), *data.notes):
        report.message(text)
    method, training = METHODS[config.method], config.training
    check_training(config, held_out=data.held_out is not None)
    if config.data.packing:
        check_windows(stored, config.data.max_length)
    if isinstance(config.adapter, FusionOptions):
        method = over(method, find_parts(config.adapter.parts, stored.spec, home))
    params = method.params(config.adapter, stored.spec, tokenizer)
    first, dtype = method.first_layer(params), DTYPES[training.dtype]
    longest = max(len(example.ids) for example in data.train_examples)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explaining_out_of_memory(config, longest))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-train-")))
        splits = [data.train_examples] if data.held_out is None else [data.train_examples, data.held_out]
        make: list[TokenBatches] | list[StateBatches] = [TokenBatches(examples, tokenizer.pad) for examples in splits]
        if first > 0:
            cached = cache_states(
                stored, first, dtype, splits, tokenizer.pad, scratch, report, dense=training.dense_base, device=device
            )
            make = cached
        layers = range(first, stored.spec.num_layers)
        attention = attention_for(device, config.data.max_length)
        base = build(stored, dtype, layers=layers, dense=training.dense_base, attention=attention, device=device)
        course.before(base, make, scratch, report)
        set_seed(training.seed)
        model = method.attach(base, params, config.adapter, tokenizer)
        model.objective = course.begin(model, make, report)
        if training.gradient_checkpointing:
            recompute_layers(model.base)
        count = sum(parameter.numel() for parameter in model.trainable().values())
        report.message(f"{config.method} on {config.base}: {count:,} trainable parameters, layers from {first}")
        evaluate: Callable[[], Score] | None = None
        if data.held_out is not None:
            held_out = data.held_out

            def evaluate() -> Score:
                return course.score(model, make[1], held_out, report, data.groups)

        if data.plan is None:
            batches, count = course.batches(make[0], None), course.count(splits[0])
            fitted = fit(model, batches, count, evaluate, config, scratch, report, rank)
        else:
            # The plan is the whole run in order: one pass over it, in so many steps.
            planned = replace(config, training=replace(training, steps=data.plan.steps))
            batches, count = course.batches(make[0], data.plan.rows), len(data.plan.rows)
            fitted = fit(model, batches, count, evaluate, planned, scratch, report, rank, shuffle=False)
        if not rank.writes:
            return config.output
        outcome = model.outcome(params)
        if kept is not None and outcome.read is not None:
            write_model(stored, kept, outcome.read)
        if not outcome.exact and data.held_out is not None:
            served = method.bare(
                build(stored, dtype, layers=layers, dense=training.dense_base, attention=attention, device=device),
                outcome.params,
            )
            served.restore(outcome.tensors)
            approximate = course.score(served, make[1], data.held_out, report, data.groups)
            fitted = replace(fitted, score=approximate, trained=fitted.score)
        extra = {**outcome.provenance, **course.provenance()}
        manifest = export(config, stored, outcome.params, outcome.tensors, data.datasets, fitted, extra)
    took = f"{time.monotonic() - started:.0f} s"
    report.message(f"{config.output}: {manifest.size_bytes:,} bytes, {fitted.steps} steps, {took}")
    if fitted.trained is not None:
        report.message(f"held out, before extraction: {fitted.trained.describe()}")
    if fitted.score is not None:
        report.message(f"held out: {fitted.score.describe()}")
    return config.output


def attention_for(device: torch.device, length: int) -> str:
    """The attention that trains fastest: torch's fused one, except for short sequences on a CPU.

    There the backward pass of the fused CPU kernel took a quarter of a prefix-tuning step at 34 tokens, where plain
    matrix products and a softmax take almost nothing. Their scores grow with the square of the length, hence a limit.
    """
    return "eager" if device.type == "cpu" and length <= _SHORT else "sdpa"


def check_windows(stored: StoredBase, length: int) -> None:
    """Raises `InvalidInputError` where an example could be longer than what the base's attention reaches back."""
    windows = [window for window in stored.config.sliding_windows if window is not None]
    if windows and length > min(windows):
        raise InvalidInputError(
            f"data.packing: layers of this base see {min(windows)} tokens back, which the mask of packed rows does not "
            f"know; set data.max_length (now {length}) to that, or leave packing out"
        )
