"""What a run works with, found and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_trainer.config.adapter import FullOptions, FusionOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.prepare import Prepared, prepare
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS, over
from weft_trainer.methods.method import Method
from weft_trainer.methods.parts import find_parts
from weft_trainer.methods.start import Start, find_start
from weft_trainer.methods.worn import open_base
from weft_trainer.modeling import nf4
from weft_trainer.modeling.base import DTYPES, TrainingBase, attention_for, build, decide_dtype
from weft_trainer.modeling.cached_layers import cache_states
from weft_trainer.modeling.packed_attention import check_windows
from weft_trainer.objectives.course import Course, Source, course_of
from weft_trainer.output.export import check_output
from weft_trainer.output.model_output import model_output
from weft_trainer.progress import Reporter
from weft_trainer.training.checkpoints import to_resume
from weft_trainer.training.journal import check_tensorboard
from weft_trainer.training.loop import check_training
from weft_trainer.training.optimizers import optim_name


@dataclass(frozen=True, eq=False)
class Setup:
    """One run's."""

    config: TrainConfig
    stored: StoredBase
    tokenizer: BaseTokenizer
    data: Prepared
    course: Course
    method: Method
    """Over its parts, where it has any."""
    params: Any
    """The adapter's, of the method's kind."""
    model_directory: Path | None
    """Where the whole model goes, if it is kept."""
    device: torch.device
    start: Start | None = None
    """The adapter that it begins at."""
    first: Adapter[Any] | None = None
    """That adapter's values and parameters."""

    @property
    def pinned(self) -> TrainConfig:
        """The configuration with the adapter that it begins at by its digest: what checkpoints belong to."""
        return _pinned(self.config, self.start)

    @property
    def first_layer(self) -> int:
        """The lowest layer whose input the adapter can change."""
        return self.method.first_layer(self.params)

    @property
    def longest(self) -> int:
        """The longest training example, in tokens."""
        return max(len(example.ids) for example in self.data.train_examples)

    def base(self) -> TrainingBase:
        """The layers that training computes, as a model of its own."""
        training = self.config.training
        return build(
            self.stored,
            DTYPES[training.dtype],
            layers=range(self.first_layer, self.stored.spec.num_layers),
            dense=training.dense_base,
            attention=attention_for(self.device, self.config.data.max_length),
            device=self.device,
        )

    def sources(self, scratch: Path, report: Reporter) -> Sequence[Source]:
        """What makes the batches of the training examples, and of the held-out ones if there are any: from their
        tokens, or from the states that enter `first_layer`, computed here. `scratch` must outlive them."""
        data, training = self.data, self.config.training
        splits = [data.train_examples] if data.held_out is None else [data.train_examples, data.held_out]
        if self.first_layer == 0:
            return [TokenBatches(examples, self.tokenizer.pad) for examples in splits]
        return cache_states(
            self.stored,
            self.first_layer,
            DTYPES[training.dtype],
            splits,
            self.tokenizer.pad,
            scratch,
            report,
            dense=training.dense_base,
            device=self.device,
        )


def set_up(config: TrainConfig, report: Reporter, home: Home | None, device: torch.device) -> Setup:
    """Opens the base and reads the examples, after what can be refused without either. Raises what is wrong with the
    configuration, the data, or what is installed, as `weft_trainer.train.train` says."""
    config = _decided(config, device)
    check_output(config.output)
    model_directory = model_output(config)
    optim_name(config)
    nf4.check(config)
    if config.tensorboard is not None:
        check_tensorboard()
    start = None
    if config.start is not None:
        start = find_start(config.start, config.output, home or Home.from_environment())
    if config.training.resume:
        to_resume(config.checkpoints, _pinned(config, start))
    stored = open_base(config.base, home)
    course = course_of(config, stored, home, device)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    data = prepare(config, tokenizer)
    for text in (*(dataset.describe() for dataset in data.datasets), *data.notes):
        report.message(text)
    check_training(config, held_out=data.held_out is not None)
    if config.data.packing:
        check_windows(stored, config.data.max_length)
    method = METHODS[config.method]
    if isinstance(config.adapter, FusionOptions):
        method = over(method, find_parts(config.adapter.parts, stored.spec, home))
    first = None if start is None else start.read(method, stored)
    if config.adapter is None:
        assert first is not None, "only a start stands for the shape"
        params = first.params
    else:
        params = method.params(config.adapter, stored.spec, tokenizer)
    if not isinstance(config.adapter, FullOptions):
        # Which has no parameters of a kind before it has trained.
        check_storable(method.kind, params, stored.spec)
    check_room(data, params, stored.spec)
    if start is not None and first is not None:
        start.check_alike(first.params, params)
        report.message(start.describe())
    return Setup(config, stored, tokenizer, data, course, method, params, model_directory, device, start, first)


def _decided(config: TrainConfig, device: torch.device) -> TrainConfig:
    # Here and not where it is used, so that the manifest and the checkpoints say what was computed in.
    dtype = str(decide_dtype(config.training.dtype, device)).removeprefix("torch.")
    return replace(config, training=replace(config.training, dtype=dtype))


def _pinned(config: TrainConfig, start: Start | None) -> TrainConfig:
    # A directory may hold another adapter when the run is resumed, and an alias name another version.
    return config if start is None else replace(config, start=start.digest)


def check_storable(kind: str, params: Any, base: BaseSpec) -> None:
    """Raises what describing or publishing the artifact would, which must not be found out after training."""
    schema = kind_schema(kind)
    schema.tensors(schema.parse(schema.block(params)), base)


def check_room(data: Prepared, params: Any, base: BaseSpec) -> None:
    """Raises `InvalidInputError` for an example that is longer than what the base, and so a server, can read."""
    virtual: int = getattr(params, "num_virtual_tokens", 0)
    room = base.context_length - virtual
    longest = max(len(example.ids) for example in (*data.train_examples, *(data.held_out or ())))
    if longest > room:
        less = f" after {virtual} virtual tokens" if virtual else ""
        raise InvalidInputError(
            f"data.max_length: the longest example has {longest} tokens, and the context of this base holds {room}"
            f"{less}; set it to {room}"
        )
