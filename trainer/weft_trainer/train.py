"""One training run, from configuration to artifact: the order of things, and nothing else."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import set_seed

from weft_adapters.base.load import StoredBase
from weft_registry.base import BaseStore
from weft_registry.home import Home
from weft_trainer import rows as raw
from weft_trainer.batches import Batch, TokenBatches
from weft_trainer.cached_layers import cache_states
from weft_trainer.config import TrainConfig
from weft_trainer.data import BaseTokenizer, Dataset, tokenize
from weft_trainer.export import check_output, export
from weft_trainer.loop import fit
from weft_trainer.methods import METHODS
from weft_trainer.model import build
from weft_trainer.progress import Reporter
from weft_trainer.score import Score, score

MakeBatch = Callable[[Sequence[int]], Batch]
_SHORT = 128
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Prepared:
    """The tokenized examples of a run."""

    train: Dataset
    held_out: Dataset | None

    @property
    def datasets(self) -> list[Dataset]:
        """Both, the training one first."""
        return [self.train] if self.held_out is None else [self.train, self.held_out]


def train(config: TrainConfig, report: Reporter, home: Home | None = None) -> Path:
    """Trains one adapter and returns the artifact's directory.

    Raises the errors of `weft_registry.errors`: `NotFoundError` for a base or file that is not there,
    `InvalidInputError` for a configuration or data that cannot be, `PreconditionError` when training diverges.
    """
    started = time.monotonic()
    check_output(config.output)
    stored = open_base(config.base, home)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    data = prepare(config, tokenizer)
    for dataset in data.datasets:
        report.message(dataset.describe())
    method, training = METHODS[config.method], config.training
    params = method.params(config.adapter, stored.spec, tokenizer)
    first, dtype = method.first_layer(params), DTYPES[training.dtype]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-train-")))
        splits = [dataset.examples for dataset in data.datasets]
        make: list[MakeBatch] = [TokenBatches(examples, tokenizer.pad) for examples in splits]
        if first > 0:
            cached = cache_states(
                stored, first, dtype, splits, tokenizer.pad, scratch, report, dense=training.dense_base, device=device
            )
            make = list(cached)
        layers = range(first, stored.spec.num_layers)
        attention = attention_for(device, config.data.max_length)
        base = build(stored, dtype, layers=layers, dense=training.dense_base, attention=attention, device=device)
        set_seed(training.seed)
        model = method.attach(base, params, config.adapter, tokenizer)
        count = sum(parameter.numel() for parameter in model.trainable().values())
        report.message(f"{config.method} on {config.base}: {count:,} trainable parameters, layers from {first}")
        evaluate: Callable[[], Score] | None = None
        if data.held_out is not None:
            held_out = data.held_out.examples

            def evaluate() -> Score:
                return score(model, make[1], held_out, report)

        fitted = fit(model, make[0], len(splits[0]), evaluate, config, scratch, report)
        manifest = export(config, stored, params, model.export(), data.datasets, fitted.score, fitted.steps)
    took = f"{time.monotonic() - started:.0f} s"
    report.message(f"{config.output}: {manifest.size_bytes:,} bytes, {fitted.steps} steps, {took}")
    if fitted.score is not None:
        report.message(f"held out: {fitted.score.describe()}")
    return config.output


def attention_for(device: torch.device, length: int) -> str:
    """The attention that trains fastest: torch's fused one, except for short sequences on a CPU.

    There the backward pass of the fused CPU kernel took a quarter of a prefix-tuning step at 34 tokens, where plain
    matrix products and a softmax take almost nothing. Their scores grow with the square of the length, hence a limit.
    """
    return "eager" if device.type == "cpu" and length <= _SHORT else "sdpa"


def open_base(name: str, home: Home | None = None) -> StoredBase:
    """The stored base of that name. Raises `NotFoundError` naming the ones there are."""
    store = BaseStore((home or Home.from_environment()).bases)
    store.get(name)
    return StoredBase.open(store.path(name))


def prepare(config: TrainConfig, tokenizer: BaseTokenizer) -> Prepared:
    """Reads, splits and tokenizes the examples."""
    data, seed = config.data, config.training.seed
    rows = raw.read_rows(data.train, "train")
    if data.eval is not None:
        held_out: raw.Rows | None = raw.read_rows(data.eval, "eval")
    elif data.eval_fraction > 0:
        rows, held_out = raw.hold_out(rows, data.eval_fraction, seed)
    else:
        held_out = None
    train_set = tokenize(raw.choose(rows, data.train_rows, seed), tokenizer, data.max_length)
    if held_out is None:
        return Prepared(train_set, None)
    return Prepared(train_set, tokenize(raw.choose(held_out, data.eval_rows, seed), tokenizer, data.max_length))
