"""One training run as one value, from one YAML file and `key=value` overrides. No torch: a mistake shows at once.

base: smollm2
method: qalora
output: runs/topic
data: {train: topic/train.jsonl, eval: topic/eval.jsonl}
adapter: {r: 8, layers: "top:8"}
training: {steps: 90, batch_size: 16, learning_rate: 1e-3}

weft train topic.yaml training.learning_rate=5e-4 adapter.layers=all
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, WeftError
from weft_registry.kinds.schema import format_decimal
from weft_registry.names import nearest
from weft_trainer.config import misplaced, strict
from weft_trainer.config.adapter import (
    BottleneckOptions,
    FullOptions,
    FusionOptions,
    GaLoreOptions,
    Ia3Options,
    LoraOptions,
    LowRankOptions,
    PrefixOptions,
    PromptOptions,
    PTuningOptions,
    PTuningV2Options,
    QLoraOptions,
)
from weft_trainer.config.data import NOTHING_HELD_OUT, DataConfig
from weft_trainer.config.objective import (
    OBJECTIVE_OPTIONS,
    CompletionOptions,
    DpoOptions,
    ObjectiveOptions,
    check_objective,
    read_objective,
)
from weft_trainer.config.start import check_start
from weft_trainer.config.yaml_source import YamlSource, path_of

Options: TypeAlias = (
    LowRankOptions
    | Ia3Options
    | PrefixOptions
    | PromptOptions
    | PTuningOptions
    | PTuningV2Options
    | BottleneckOptions
    | FusionOptions
    | FullOptions
)

METHOD_OPTIONS: Mapping[str, type[Options]] = {
    "lora": LoraOptions,
    "qlora": QLoraOptions,
    "dora": LoraOptions,
    "ia3": Ia3Options,
    "qalora": LowRankOptions,
    "prefix": PrefixOptions,
    "prompt_tuning": PromptOptions,
    "p_tuning": PTuningOptions,
    "p_tuning_v2": PTuningV2Options,
    "houlsby": BottleneckOptions,
    "pfeiffer": BottleneckOptions,
    "parallel": BottleneckOptions,
    "fusion": FusionOptions,
    "full": FullOptions,
    "partial": FullOptions,
    "galore": GaLoreOptions,
}
# Methods that keep the examples of a packed row apart, each shown by a test: their models hand the whole batch to the
# base, and what they put before a row every example of it sees.
PACKABLE = (
    "lora",
    "qlora",
    "dora",
    "ia3",
    "qalora",
    "prefix",
    "prompt_tuning",
    "p_tuning",
    "p_tuning_v2",
    "houlsby",
    "pfeiffer",
    "parallel",
    "full",
    "partial",
    "galore",
)
DTYPES = ("auto", "bfloat16", "float32")
# "adamw", and the names of transformers' `optim` whose optimizers step like any other: not those that update inside the
# backward pass (lomo, the layerwise ones), nor those that hold other parameters while evaluating (schedule_free).
OPTIMIZERS = (
    "adamw",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "adafactor",
    "adagrad",
    "ademamix",
    "ademamix_8bit",
    "galore_adafactor",
    "galore_adamw",
    "galore_adamw_8bit",
    "grokadamw",
    "lion_32bit",
    "lion_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "sgd",
    "stable_adamw",
)
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
_EPOCHS = 3.0


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, and what is kept on the way."""

    steps: int | None = field(default=None, metadata={"least": 1})
    """Optimizer steps. None: `epochs` decides."""
    epochs: float | None = field(default=None, metadata={"above": 0})
    """Passes over the training examples, in the place of `steps`. None: 3, where `steps` is not given."""
    batch_size: int = field(default=16, metadata={"least": 1})
    """Examples per forward pass."""
    gradient_accumulation: int = field(default=1, metadata={"least": 1})
    """Forward passes per optimizer step; the loss is the mean over all their completion tokens."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer for the backward pass and compute the rest again: much less memory, steps about
    a third slower, the same numbers."""
    devices: int = field(default=1, metadata={"least": 1})
    """Processes that train together, one GPU each, or one share of the CPU's cores each. A step then has `batch_size` *
    `gradient_accumulation` * `devices` examples, and is the step of one device with that batch."""
    learning_rate: float = field(default=1e-3, metadata={"above": 0})
    """Peak rate of the optimizer."""
    optimizer: str = field(default="adamw", metadata={"choices": OPTIMIZERS})
    """adamw, or another of transformers' `optim` names. Those that need a package or a GPU that is not there are
    refused before anything is loaded."""
    schedule: str = field(default="linear", metadata={"choices": SCHEDULES})
    """How the rate falls after the warm-up. "constant" has none, and "constant_with_warmup" stays at its peak."""
    warmup: float = field(default=0.05, metadata={"least": 0, "most": 1})
    """Share of the steps over which the rate rises to its peak; not with `schedule: constant`."""
    weight_decay: float = field(default=0.0, metadata={"least": 0})
    """Decoupled weight decay."""
    max_grad_norm: float = field(default=1.0, metadata={"least": 0})
    """Gradients are scaled down to this norm; 0: never."""
    dtype: str = field(default="auto", metadata={"choices": DTYPES})
    """What the base computes in. Adapter parameters and the optimizer are float32 whatever this says. "auto": bfloat16
    on a GPU and on a CPU that multiplies it (AVX-512), float32 elsewhere, where bfloat16 would be many times slower."""
    dense_base: bool = False
    """Keep a dense copy of the base's weights in `dtype` while training instead of dequantizing at every use: 2 bytes
    a weight in bfloat16 instead of 0.6, for steps up to a quarter faster (the smaller the batch, the more)."""
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    """Decides the initial parameters, the order of examples, dropout and held-out rows."""
    log_every: int = field(default=10, metadata={"least": 1})
    """Steps over which the loss that is shown is averaged."""
    eval_every: int | None = field(default=None, metadata={"least": 1})
    """Steps between evaluations. None: once, at the end."""
    early_stopping_patience: int | None = field(default=None, metadata={"least": 1})
    """Stop after so many evaluations without a lower held-out loss, and keep the parameters of the lowest one. Needs
    `eval_every`. None: never, and the last parameters are kept."""
    save_every: int | None = field(default=None, metadata={"least": 1})
    """Steps between checkpoints, kept in OUTPUT.checkpoints. None: none."""
    keep_checkpoints: int = field(default=2, metadata={"least": 1})
    """How many checkpoints are kept, the newest ones."""
    tensorboard: bool | Path = False
    """Write TensorBoard event files: true to OUTPUT.tensorboard, a path to a directory of the run's name in there."""
    resume: bool = False
    """Go on from the newest checkpoint. An error if there is none."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise InvalidInputError(
                f"training.epochs: without effect beside training.steps, which is {self.steps}; keep one of the two "
                "(on the command line training.epochs=null takes this one back, training.steps=null the other)"
            )
        if self.schedule == "constant" and self.warmup and strict.given(self, "warmup"):
            raise strict.ConfigError(
                "training.warmup",
                f"{self.warmup}, but training.schedule: constant has no warm-up; take constant_with_warmup, or leave "
                "it out",
            )
        if self.early_stopping_patience is not None and self.eval_every is None:
            raise strict.ConfigError(
                "training.early_stopping_patience", "it counts evaluations; give training.eval_every too"
            )

    @property
    def passes(self) -> float:
        """Over the training examples, where `steps` is None."""
        return _EPOCHS if self.epochs is None else self.epochs


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    base: str
    """Name of a stored base (`weft base list`)."""
    method: str
    """A key of `METHOD_OPTIONS`."""
    output: Path
    """The artifact directory to make. Replaced, whole, when the run succeeds."""
    data: DataConfig
    """Where the examples come from."""
    adapter: Options | None
    """The method's own parameters: `weft_trainer.config.adapter`. None, where there is a start: that adapter's shape,
    and nothing that acts in training alone, such as dropout."""
    objective: ObjectiveOptions = field(default_factory=CompletionOptions)
    """What is optimized: {kind: completion}, {kind: distill, teacher: ...} or {kind: dpo}, with the kind's own
    settings: `weft_trainer.config.objective`."""
    start: str | None = None
    """The adapter whose values are the first ones: an artifact directory, or a reference ("acme/topics:v1") in the
    registry at WEFT_REGISTRY, else in the embedded one. `adapter` describes the same shape, or is left out. None: first
    values as the method has them."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long, how fast."""
    name: str | None = None
    """The adapter's name in its manifest. None: the last part of `output`."""
    license: str = ""
    """Licence of the adapter, as an SPDX identifier, for its manifest and model card."""
    description: str = ""
    """One or two sentences for the model card."""

    def __post_init__(self) -> None:
        # Early stopping needs it too, and so is refused with it.
        if self.training.eval_every is not None and not self.data.holds_out:
            raise strict.ConfigError("training.eval_every", f"without effect: {NOTHING_HELD_OUT}, or leave it out")

    @property
    def adapter_name(self) -> str:
        """`name`, or the last part of `output`."""
        return self.name or self.output.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go: beside the artifact, for an artifact holds nothing but itself."""
        return self.output.with_name(self.output.name + ".checkpoints")

    @property
    def tensorboard(self) -> Path | None:
        """Where TensorBoard's event files go, if anywhere."""
        chosen = self.training.tensorboard
        if isinstance(chosen, Path):
            return chosen / self.output.name
        return self.output.with_name(self.output.name + ".tensorboard") if chosen else None

    def as_json(self) -> dict[str, Any]:
        """The configuration as canonical JSON takes it: paths and decimals as strings."""
        plain: dict[str, Any] = _plain(asdict(self), format_decimal)
        return plain

    def as_yaml(self) -> str:
        """The whole configuration as YAML, defaults included: `load` reads the same run from it."""
        text: str = yaml.safe_dump(_plain(asdict(self), float), sort_keys=False, allow_unicode=True, width=120)
        return text

    def digest(self) -> str:
        """Digest of `as_json`."""
        return digests.of_bytes(canonical.dumps(self.as_json()))


_KEYS = frozenset(field.name for field in fields(TrainConfig))


def load(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run that a YAML file and `dotted.key=value` overrides describe.

    Raises `NotFoundError` if there is no such file, `InvalidInputError` naming what is wrong, with its line and column
    or the override that says it.
    """
    return load_with_source(path, overrides)[0]


def load_with_source(path: Path, overrides: Sequence[str] = ()) -> tuple[TrainConfig, YamlSource]:
    """`load`, and where each setting is said: for `locating`."""
    source = YamlSource(path)
    source.override(overrides)
    try:
        return parse(source.document), source
    except InvalidInputError as error:
        raise source.locate(error) from error


@contextmanager
def locating(source: YamlSource) -> Generator[None]:
    """Within it, an error that names a key of the run begins with the line and column, or the override, that says it:
    what only a base can refuse, such as a module that it has not. All others stay as they are."""
    try:
        yield
    except WeftError as error:
        path = path_of(error)
        if re.split(r"[.\[]", path)[0] in _KEYS:
            error.message += source.way_back(path, error.message)
            error.begin(f"{source.origin(path)}: ")
        raise


def parse(document: Mapping[str, Any]) -> TrainConfig:
    """A run from nested mappings. Raises `InvalidInputError` naming the key, and where one belongs that stands in the
    wrong place."""
    try:
        return _parse(document)
    except strict.ConfigError as error:
        if error.reason != "UNKNOWN_KEY" or (hint := misplaced.hint(error.path, _known(document))) is None:
            raise
        raise strict.ConfigError(error.path, f"unknown key; {hint}", reason=error.reason) from error


def _known(document: Mapping[str, Any]) -> list[str]:
    """The dotted paths of all that a run with the document's method and kind of objective may say."""
    objective = document.get("objective")
    kind = objective.get("kind") if isinstance(objective, Mapping) else None
    blocks: dict[str, type[Any]] = {"objective": OBJECTIVE_OPTIONS.get(str(kind), CompletionOptions)}
    if (options := METHOD_OPTIONS.get(str(document.get("method")))) is not None:
        blocks["adapter"] = options
    return list(misplaced.paths(TrainConfig, blocks))


def _parse(document: Mapping[str, Any]) -> TrainConfig:
    # Before the method is asked for, which may be what is misspelt.
    strict.check_keys(TrainConfig, document)
    method = document.get("method")
    options = METHOD_OPTIONS.get(method) if isinstance(method, str) else None
    if options is None:
        near = nearest(str(method), METHOD_OPTIONS)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise strict.ConfigError("method", f"{method!r} is not one of {', '.join(METHOD_OPTIONS)}{hint}")
    # Read before the rest, because the method decides what it may contain.
    block, start = document.get("adapter"), document.get("start")
    # A start's shape stands for one that is left out.
    adapter = (
        None if block is None and start is not None else strict.read(options, {} if block is None else block, "adapter")
    )
    objective = read_objective(document.get("objective"), start)
    config = strict.read(TrainConfig, {**document, "adapter": adapter, "objective": objective})
    check_objective(config.objective, config.data)
    _check_loop(config.training)
    if config.start is not None:
        check_start(config.method, options, adapter)
    stacked = isinstance(adapter, BottleneckOptions) and bool(adapter.stack_on)
    if stacked and isinstance(objective, DpoOptions) and objective.reference == "base":
        raise strict.ConfigError(
            "adapter.stack_on",
            "the reference of dpo is the base, on which nothing is stacked; begin at an adapter (start), which is then "
            "the reference, with what lies below it",
        )
    if config.data.packing and config.method not in PACKABLE:
        raise strict.ConfigError(
            "data.packing",
            f"{config.method} is not known to keep the examples of a row apart; leave packing out, or train "
            f"{', '.join(PACKABLE)}",
        )
    return config


def _check_loop(training: TrainingConfig) -> None:
    """Raises `ConfigError` for settings of the loop that this run leaves without effect. Not the dataclass's own to
    refuse: a run of mixed files counts its steps itself."""
    steps, every = training.steps, training.eval_every
    if steps is not None and every is not None and every > steps:
        raise strict.ConfigError(
            "training.eval_every",
            f"without effect: {every}, and training.steps is {steps}, so that none comes before the evaluation at the "
            "end; lower it, or leave it out (on the command line training.eval_every=null takes it back)",
        )
    if strict.given(training, "keep_checkpoints") and training.save_every is None and not training.resume:
        raise strict.ConfigError(
            "training.keep_checkpoints",
            "without effect: checkpoints come with training.save_every; give that too, or leave it out",
        )


def _plain(value: Any, decimal: Callable[[float], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item, decimal) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, decimal) for item in value]
    if isinstance(value, Path):
        return str(value)
    return decimal(value) if isinstance(value, float) else value
