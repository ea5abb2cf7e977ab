"""The `data` block of a training configuration. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weft_trainer.config.strict import ConfigError, given

# The keys of `weft_trainer.data.formats.READERS`, as a test sees to.
FORMATS = ("prompt-completion", "messages", "alpaca", "sharegpt", "text")
LOSS_ON = ("all", "last")
INVALID = ("error", "drop")
NOTHING_HELD_OUT = "no examples are held out; give data.eval, or a data.eval_fraction above 0"
"""What is missing where something needs them, and the way out."""


@dataclass(frozen=True)
class DatasetConfig:
    """One file of examples among several."""

    path: Path
    """JSONL, a JSON array, or Parquet; which one is seen from its first bytes."""
    weight: float | None = field(default=None, metadata={"above": 0})
    """How often examples of this file are drawn, relative to the others' weights. Give it for every file or for none.
    None: in proportion to its size, up to `data.mixing_maximum`."""
    format: str | None = field(default=None, metadata={"choices": FORMATS})
    """As `data.format`, for this file."""
    templates: Path | None = None
    """A YAML file of phrasings (`weft_trainer.data.templates`) that make the examples from the records of this
    file. The records may then have any fields."""
    phrasings: int = field(default=1, metadata={"least": 1})
    """How many different templates each training record is written with; only with `templates`."""
    eval_fraction: float | None = field(default=None, metadata={"least": 0, "most": 0.9})
    """As `data.eval_fraction`, for this file."""


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from. Paths are relative to the working directory."""

    train: Path | tuple[DatasetConfig, ...]
    """One file, or a list of {path, weight, format, templates, phrasings, eval_fraction}. A file is JSONL, a JSON array
    or Parquet; a record is {"prompt", "completion"}, {"messages"}, {"instruction", "input", "output"} (Alpaca),
    {"conversations": [{"from", "value"}]} (ShareGPT) or {"text"}, all of which is learnt."""
    eval: Path | tuple[DatasetConfig, ...] | None = None
    """Held-out examples, likewise one file or a list. None: `eval_fraction` of every training file is held out."""
    eval_fraction: float = field(default=0.1, metadata={"least": 0, "most": 0.9})
    """Share of each training file held out, chosen by `training.seed`; used only without `eval`. 0: no evaluation."""
    format: str | None = field(default=None, metadata={"choices": FORMATS})
    """What every record must be: prompt-completion, messages, alpaca, sharegpt or text. None: seen from its keys."""
    invalid: str = field(default="error", metadata={"choices": INVALID})
    """What a record that cannot be read, or not by this base, does. "error": it ends the run, with its line. "drop": it
    is left out, counted and reported with its reason and line."""
    loss_on: str = field(default="all", metadata={"choices": LOSS_ON})
    """Which answers of a conversation are learnt. "all": each of the assistant's turns, as if it were the last one.
    "last": the last one; the others are only read. Evaluation always scores the last one."""
    max_length: int = field(default=512, metadata={"least": 2})
    """Longest example in tokens, prompt and completion. Longer ones lose the START of their prompt; one whose
    completion alone is longer is left out. Both are counted and reported. Plain text is cut into several examples
    instead, each of which begins with the last token of the one before."""
    packing: bool = False
    """Put several examples into one row of up to `max_length` tokens, none of which sees another. `batch_size` then
    counts rows. The loss is that of the same examples apart; there is just less padding to compute."""
    mixing_maximum: int | None = field(default=None, metadata={"least": 1})
    """Files are drawn from in proportion to their sizes, but none as if it had more examples than this (FLAN's mixing
    rate maximum, arXiv:2109.01652). An epoch then draws at most so many of each file, others in the next epoch."""
    train_rows: int | None = field(default=None, metadata={"least": 1})
    """Train on this many records of each file, chosen by `training.seed`. None: all."""
    eval_rows: int | None = field(default=None, metadata={"least": 1})
    """Evaluate on this many, likewise."""

    def __post_init__(self) -> None:
        for key, listed in (("train", self.train), ("eval", self.eval)):
            if isinstance(listed, tuple) and not listed:
                raise ConfigError(f"data.{key}", "no file at all; give a path, or a list of {path, ...}")
        for key, datasets in (("train", self.training_sets), ("eval", self.evaluation_sets)):
            for index, dataset in enumerate(datasets):
                if dataset.templates is not None and dataset.format is not None:
                    raise ConfigError(f"data.{key}[{index}].format", "templates decide what a record is; leave it out")
                if dataset.templates is None and dataset.phrasings != 1:
                    raise ConfigError(f"data.{key}[{index}].phrasings", "it counts templates; give templates too")
        if self.format is not None:
            every = (*self.training_sets, *self.evaluation_sets)
            if all(dataset.templates is not None or dataset.format is not None for dataset in every):
                raise ConfigError("data.format", "without effect: every file has a format or templates of its own")
        weighted = [dataset.weight is not None for dataset in self.training_sets]
        if any(weighted) and not all(weighted):
            missing = self.training_sets[weighted.index(False)].path
            raise ConfigError(
                "data.train", f"{missing} has no weight, and others have; give one to every file, or to none"
            )
        if any(weighted) and self.mixing_maximum is not None:
            raise ConfigError("data.mixing_maximum", "without effect where files have weights; give one of the two")
        for index, dataset in enumerate(self.evaluation_sets):
            for name in ("weight", "eval_fraction"):
                if getattr(dataset, name) is not None:
                    raise ConfigError(f"data.eval[{index}].{name}", "without effect on evaluation; leave it out")
            if dataset.phrasings != 1:
                raise ConfigError(f"data.eval[{index}].phrasings", "without effect on evaluation; leave it out")
        if self.eval is not None:
            for index, dataset in enumerate(self.training_sets):
                if dataset.eval_fraction is not None:
                    raise ConfigError(f"data.train[{index}].eval_fraction", "without effect beside data.eval")
        if given(self, "eval_fraction"):
            if self.eval is not None:
                raise ConfigError(
                    "data.eval_fraction",
                    "without effect: data.eval is what is held out; give one of the two (on the command line "
                    f"data.eval_fraction={type(self).eval_fraction}, its default, takes this one back)",
                )
            if all(dataset.eval_fraction is not None for dataset in self.training_sets):
                raise ConfigError("data.eval_fraction", "without effect: every file has one of its own; leave it out")
        if self.eval_rows is not None and not self.holds_out:
            raise ConfigError("data.eval_rows", f"without effect: {NOTHING_HELD_OUT}, or leave it out")

    @property
    def training_sets(self) -> tuple[DatasetConfig, ...]:
        """`train` as a list."""
        return (DatasetConfig(self.train),) if isinstance(self.train, Path) else self.train

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out examples."""
        return self.eval is not None or any(self.fraction_of(dataset) > 0 for dataset in self.training_sets)

    def fraction_of(self, dataset: DatasetConfig) -> float:
        """How much of a training file is held out, where `eval` is not given."""
        return dataset.eval_fraction if dataset.eval_fraction is not None else self.eval_fraction

    @property
    def evaluation_sets(self) -> tuple[DatasetConfig, ...]:
        """`eval` as a list; empty without."""
        if self.eval is None:
            return ()
        return (DatasetConfig(self.eval),) if isinstance(self.eval, Path) else self.eval
