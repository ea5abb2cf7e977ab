"""What a run works with, found and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from weft_trainer.config.adapter import FullOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.prepare import Prepared, prepare
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS, initial, over
from weft_trainer.methods.full import trained_weights
from weft_trainer.methods.method import Method
from weft_trainer.methods.parts import Part, notes, parts_of_run, pinned
from weft_trainer.methods.start import Start, find_start
from weft_trainer.methods.virtual_tokens import Room
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
from weft_trainer.training.identity import Identity, identity_of
from weft_trainer.training.journal import check_tensorboard
from weft_trainer.training.optimizers import optim_name


@dataclass(frozen=True, eq=False)
class Shape:
    """The adapter that a run makes, before its first values."""

    method: Method
    """Over its parts, where it has any."""
    params: Any
    """Of the method's kind."""
    parts: Sequence[Part]
    """What it is trained over."""
    first: Adapter[Any] | None
    """The adapter whose values are the first ones, where there is a start."""


@dataclass(frozen=True, eq=False)
class Setup:
    """One run's."""

    config: TrainConfig
    stored: StoredBase
    tokenizer: BaseTokenizer
    data: Prepared
    course: Course
    shape: Shape
    identity: Identity
    """What its checkpoints belong to."""
    model_directory: Path | None
    """Where the whole model goes, if it is kept."""
    device: torch.device
    start: Start | None = None
    """The adapter that it begins at."""

    @property
    def first_layer(self) -> int:
        """The lowest layer whose input the adapter, or what it is over, can change."""
        return self.shape.method.first_layer(self.shape.params)

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
    """Opens the base, decides the adapter's shape and reads the examples, each after what can be refused without it.
    Raises what is wrong with the configuration, the data, or what is installed, as `weft_trainer.train.train` says."""
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
    stored = open_base(config.base, home)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    shape = _shape(config, start, stored, tokenizer, home)
    course = course_of(config, stored, home, device)
    identity = identity_of(config, _stands_for(config, stored, start, shape.parts, course))
    if config.training.resume:
        to_resume(config.checkpoints, identity)
    if config.data.packing:
        check_windows(stored, config.data.max_length)
    data = prepare(config, tokenizer)
    for text in (*(dataset.describe() for dataset in data.datasets), *data.notes):
        report.message(text)
    check_room(data, shape.params, stored.spec)
    course.check_room(data.train_examples)
    if start is not None:
        report.message(start.describe())
    if shape.parts:
        report.message(f"over {', '.join(str(part.reference) for part in shape.parts)}")
    for text in notes(shape.method.kind, shape.parts):
        report.message(text)
    return Setup(config, stored, tokenizer, data, course, shape, identity, model_directory, device, start)


def _shape(
    config: TrainConfig, start: Start | None, stored: StoredBase, tokenizer: BaseTokenizer, home: Home | None
) -> Shape:
    """What `adapter` or the start says of the adapter. Raises what is wrong with either."""
    method = METHODS[config.method]
    if config.adapter is None:
        assert start is not None, "only a start stands for the options"
        first, parts = start.read(method, stored)
        return Shape(over(method, parts), first.params, parts, first)
    parts = parts_of_run(config.adapter, stored.spec, home)
    method = over(method, parts)
    params = method.params(config.adapter, stored.spec, tokenizer)
    if isinstance(config.adapter, FullOptions):
        # Which has no parameters of a kind before it has trained.
        trained_weights(stored, params)
    else:
        check_storable(method.kind, params, stored.spec)
        initial.check_values(config.adapter, stored)
    if start is None:
        return Shape(method, params, parts, None)
    first, _ = start.read(method, stored, stack_on=())
    start.check_alike(first.params, params)
    return Shape(method, params, parts, first)


def _decided(config: TrainConfig, device: torch.device) -> TrainConfig:
    # Here and not where it is used, so that the manifest and the checkpoints say what was computed in.
    dtype = str(decide_dtype(config.training.dtype, device)).removeprefix("torch.")
    return replace(config, training=replace(config.training, dtype=dtype))


def _stands_for(
    config: TrainConfig, stored: StoredBase, start: Start | None, parts: Sequence[Part], course: Course
) -> Mapping[str, Any]:
    # A directory may hold another adapter when the run is resumed, an alias name another version, and a base's name
    # another base.
    return {
        "base": stored.spec.fingerprint.weights_sha256,
        "start": None if start is None else start.digest,
        "objective.teacher": course.provenance().get("objective", {}).get("teacher"),
        **pinned(config.adapter, parts),
    }


def check_storable(kind: str, params: Any, base: BaseSpec) -> None:
    """Raises what describing or publishing the artifact would, which must not be found out after training."""
    schema = kind_schema(kind)
    schema.tensors(schema.parse(schema.block(params)), base)


def check_room(data: Prepared, params: Any, base: BaseSpec) -> None:
    """Raises `InvalidInputError` for an example that is longer than what the base, and so a server, can read."""
    room = Room.beside(params, base)
    longest = max(len(example.ids) for example in (*data.train_examples, *(data.held_out or ())))
    if longest > room.tokens:
        fewer = base.context_length - longest
        # A prompt of no tokens is no way out.
        instead = f", or adapter.num_virtual_tokens to at most {fewer}" if room.virtual and fewer > 0 else ""
        raise InvalidInputError(
            f"data.max_length: the longest example has {longest} tokens, and the context of this base holds "
            f"{room.tokens}{room.less}; set it to {room.tokens}{instead}"
        )
