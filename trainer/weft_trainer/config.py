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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.kinds.schema import format_decimal
from weft_trainer import strict
from weft_trainer.options import LowRankOptions, PrefixOptions

METHOD_OPTIONS: Mapping[str, type[LowRankOptions | PrefixOptions]] = {
    "lora": LowRankOptions,
    "qalora": LowRankOptions,
    "prefix": PrefixOptions,
}
DTYPES = ("bfloat16", "float32")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from. Paths are relative to the working directory."""

    train: Path
    """JSONL: {"prompt", "completion"} or {"messages": [...]} a line."""
    eval: Path | None = None
    """JSONL of held-out examples. None: `eval_fraction` of the training file is held out instead."""
    eval_fraction: float = field(default=0.1, metadata={"least": 0, "most": 0.9})
    """Share of the training file held out, chosen by `training.seed`; used only without `eval`. 0: no evaluation."""
    max_length: int = field(default=512, metadata={"least": 2})
    """Longest example in tokens, prompt and completion. Longer ones lose the START of their prompt; one whose
    completion alone is longer is left out. Both are counted and reported."""
    train_rows: int | None = field(default=None, metadata={"least": 1})
    """Train on this many examples, chosen by `training.seed`. None: all."""
    eval_rows: int | None = field(default=None, metadata={"least": 1})
    """Evaluate on this many, likewise."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, and what is kept on the way."""

    steps: int | None = field(default=None, metadata={"least": 1})
    """Optimizer steps. None: `epochs` decides."""
    epochs: float = field(default=3.0, metadata={"above": 0})
    """Passes over the training examples; used only without `steps`."""
    batch_size: int = field(default=16, metadata={"least": 1})
    """Examples per forward pass."""
    gradient_accumulation: int = field(default=1, metadata={"least": 1})
    """Forward passes per optimizer step; the loss is the mean over all their completion tokens."""
    learning_rate: float = field(default=1e-3, metadata={"above": 0})
    """Peak rate of AdamW."""
    schedule: str = field(default="linear", metadata={"choices": SCHEDULES})
    """How the rate falls after the warm-up."""
    warmup: float = field(default=0.05, metadata={"least": 0, "most": 1})
    """Share of the steps over which the rate rises to its peak."""
    weight_decay: float = field(default=0.0, metadata={"least": 0})
    """Decoupled weight decay."""
    max_grad_norm: float = field(default=1.0, metadata={"least": 0})
    """Gradients are scaled down to this norm; 0: never."""
    dtype: str = field(default="bfloat16", metadata={"choices": DTYPES})
    """What the base computes in. Adapter parameters and the optimizer are float32 whatever this says."""
    dense_base: bool = False
    """Keep a dense copy of the base's weights in `dtype` while training instead of dequantizing at every use: 2 bytes
    a weight in bfloat16 instead of 0.6, for steps up to a quarter faster (the smaller the batch, the more)."""
    seed: int = field(default=0, metadata={"least": 0})
    """Decides the initial parameters, the order of examples, dropout and held-out rows."""
    log_every: int = field(default=10, metadata={"least": 1})
    """Steps over which the loss that is shown is averaged."""
    eval_every: int | None = field(default=None, metadata={"least": 1})
    """Steps between evaluations. None: once, at the end."""
    save_every: int | None = field(default=None, metadata={"least": 1})
    """Steps between checkpoints, kept in OUTPUT.checkpoints. None: none."""
    keep_checkpoints: int = field(default=2, metadata={"least": 1})
    """How many checkpoints are kept, the newest ones."""
    resume: bool = False
    """Go on from the newest checkpoint. An error if there is none."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    base: str
    """Name of a stored base (`weft base list`)."""
    method: str
    """lora, qalora or prefix."""
    output: Path
    """The artifact directory to make. Replaced, whole, when the run succeeds."""
    data: DataConfig
    """Where the examples come from."""
    adapter: LowRankOptions | PrefixOptions
    """The method's own parameters: `weft_trainer.options`."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long, how fast."""
    name: str | None = None
    """The adapter's name in its manifest. None: the last part of `output`."""
    license: str = ""
    """Licence of the adapter, as an SPDX identifier, for its manifest and model card."""
    description: str = ""
    """One or two sentences for the model card."""

    @property
    def adapter_name(self) -> str:
        """`name`, or the last part of `output`."""
        return self.name or self.output.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go: beside the artifact, for an artifact holds nothing but itself."""
        return self.output.with_name(self.output.name + ".checkpoints")

    def as_json(self) -> dict[str, Any]:
        """The configuration as canonical JSON takes it: paths and decimals as strings."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def digest(self) -> str:
        """Digest of `as_json`."""
        return digests.of_bytes(canonical.dumps(self.as_json()))


def load(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The run that a YAML file and `dotted.key=value` overrides describe.

    Raises `NotFoundError` if there is no such file, `InvalidInputError` naming what is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise NotFoundError(f"no configuration file at {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{path}: expected a mapping of keys to values")
    for override in overrides:
        _override(document, override)
    return parse(document)


def parse(document: Mapping[str, Any]) -> TrainConfig:
    """A run from nested mappings. Raises `InvalidInputError` naming the key."""
    method = document.get("method")
    options = METHOD_OPTIONS.get(method) if isinstance(method, str) else None
    if options is None:
        raise InvalidInputError(f"method: {method!r} is not one of {', '.join(METHOD_OPTIONS)}")
    # Read before the rest, because the method decides what it may contain.
    adapter = strict.read(options, document.get("adapter") or {}, "adapter")
    if isinstance(adapter, PrefixOptions) and adapter.prefix_projection and adapter.init_text is not None:
        raise InvalidInputError(
            "adapter.init_text: an MLP (adapter.prefix_projection) decides the prefix, so it cannot start at the keys "
            "and values of a text; give one of the two"
        )
    return strict.read(TrainConfig, {**document, "adapter": adapter})


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InvalidInputError(f"override {override!r}: expected KEY=VALUE, such as training.learning_rate=5e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"override {override!r}: the value is not YAML: {error}") from error
    at = document
    for part in parts[:-1]:
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if not isinstance(at, dict):
            raise InvalidInputError(f"override {override!r}: {part!r} is not a group of keys")
    at[parts[-1]] = value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return format_decimal(value) if isinstance(value, float) else value
