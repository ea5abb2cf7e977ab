"""From the `data` block to tokenized examples and the rows that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from weft_registry.kinds.schema import format_decimal
from weft_trainer.config.data import DataConfig, DatasetConfig
from weft_trainer.config.objective import DpoOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.config.strict import ConfigError
from weft_trainer.data import rows as raw
from weft_trainer.data.dataset import Dataset, Example
from weft_trainer.data.mixing import mixture
from weft_trainer.data.packing import Plan, plan
from weft_trainer.data.pairs import pair_datasets
from weft_trainer.data.phrasing import FieldRecords
from weft_trainer.data.records import read_records
from weft_trainer.data.rows import Rows
from weft_trainer.data.templates import load_templates
from weft_trainer.data.tokenization import TextEncoder, tokenize


@dataclass(frozen=True)
class Prepared:
    """The tokenized examples of a run."""

    training: tuple[Dataset, ...]
    """One a file."""
    evaluation: tuple[Dataset, ...]
    """One a file, or two where templates are held out; empty without evaluation."""
    plan: Plan | None
    """The rows that training reads, where they are packed or mixed. None: every example once an epoch, shuffled."""
    notes: tuple[str, ...]
    """What there is to say of packing and mixing, for people."""

    @property
    def datasets(self) -> list[Dataset]:
        """All, the training ones first."""
        return [*self.training, *self.evaluation]

    @property
    def train_examples(self) -> tuple[Example, ...]:
        """Of all files, in their order."""
        return _joined(self.training)

    @property
    def held_out(self) -> tuple[Example, ...] | None:
        """Of all files, in their order. None without evaluation."""
        return _joined(self.evaluation) if self.evaluation else None

    @property
    def groups(self) -> tuple[str, ...]:
        """To which part of the score each held-out example belongs, by file and templates; empty if there is one."""
        if len(self.evaluation) < 2:
            return ()
        return tuple(dataset.rows.title for dataset in self.evaluation for _ in dataset.examples)


def prepare(config: TrainConfig, encoder: TextEncoder) -> Prepared:
    """Reads, splits and tokenizes the examples, and plans the rows. Raises what is wrong with files, by name."""
    data, seed = config.data, config.training.seed
    if isinstance(config.objective, DpoOptions):
        pairs, held_pairs = pair_datasets(config, encoder)
        return Prepared(tuple(pairs), tuple(held_pairs), None, ())
    read = [_read_training(dataset, data, seed) for dataset in data.training_sets]
    _check_loss_on(data, [rows for rows, _ in read])
    trained = distinct([(rows, dataset) for (rows, _), dataset in zip(read, data.training_sets, strict=True)])
    training = [tokenize(rows, encoder, data.max_length, data.loss_on, data.invalid) for rows in trained]
    held_out = [(rows, dataset) for (_, held), dataset in zip(read, data.training_sets, strict=True) for rows in held]
    for dataset in data.evaluation_sets:
        held_out += [(rows, dataset) for rows in _read_evaluation(dataset, data, seed)]
    # The last answer alone, as `weft eval` scores it.
    evaluation = tuple(tokenize(rows, encoder, data.max_length, invalid=data.invalid) for rows in distinct(held_out))
    planned, weighted, notes = _plan(config, training)
    return Prepared(weighted, evaluation, planned, notes)


def distinct(read: Sequence[tuple[Rows, DatasetConfig]]) -> list[Rows]:
    """The rows, those of a file that is listed several times told apart by what the lists say of it."""
    variants: dict[str, set[str]] = {}
    for rows, dataset in read:
        variants.setdefault(rows.uri, set()).add(_variant(dataset))
    return [replace(rows, variant=_variant(of)) if len(variants[rows.uri]) > 1 else rows for rows, of in read]


def _variant(dataset: DatasetConfig) -> str:
    """How a file is listed, for its title."""
    if dataset.templates is not None:
        return f"with {dataset.templates}"
    return f"as {dataset.format}" if dataset.format is not None else ""


def _check_loss_on(data: DataConfig, training: Sequence[Rows]) -> None:
    """Raises `ConfigError` for `loss_on: last` where every record is one answer, whatever it says."""
    if data.loss_on == "all":
        return
    for dataset, rows in zip(data.training_sets, training, strict=True):
        # Of a conversation, today's may be short; a template writes one answer, even as a user's turn.
        if dataset.templates is None and any(isinstance(row.prompt, tuple) for row in rows.rows):
            return
    raise ConfigError(
        "data.loss_on", f"{data.loss_on} is without effect: no training file has conversations; leave it out"
    )


def _read_training(dataset: DatasetConfig, data: DataConfig, seed: int) -> tuple[Rows, list[Rows]]:
    """(training rows, what is held out of the same file)."""
    fraction = data.fraction_of(dataset)
    holds_out = data.eval is None and fraction > 0
    if dataset.templates is None:
        rows = raw.read_rows(dataset.path, "train", dataset.format or data.format, data.invalid)
        held: list[Rows] = []
        if holds_out:
            rows, part = raw.hold_out(rows, fraction, seed)
            held = [raw.choose(part, data.eval_rows, seed)]
        return raw.choose(rows, data.train_rows, seed), held
    templates = load_templates(dataset.templates)
    file = read_records(dataset.path)
    records = FieldRecords(file, file.records, "train")
    written: list[Rows] = []
    if holds_out:
        records, out = raw.hold_out(records, fraction, seed)
        written = raw.choose(out, data.eval_rows, seed).evaluation_rows(templates, seed, data.invalid)
    chosen = raw.choose(records, data.train_rows, seed)
    return chosen.training_rows(templates, dataset.phrasings, seed, data.invalid), written


def _read_evaluation(dataset: DatasetConfig, data: DataConfig, seed: int) -> list[Rows]:
    if dataset.templates is None:
        rows = raw.read_rows(dataset.path, "eval", dataset.format or data.format, data.invalid)
        return [raw.choose(rows, data.eval_rows, seed)]
    file = read_records(dataset.path)
    chosen = raw.choose(FieldRecords(file, file.records, "eval"), data.eval_rows, seed)
    return chosen.evaluation_rows(load_templates(dataset.templates), seed, data.invalid)


def _plan(config: TrainConfig, datasets: Sequence[Dataset]) -> tuple[Plan | None, tuple[Dataset, ...], tuple[str, ...]]:
    """(the plan if one is needed, the data sets with their shares of it, what to say)."""
    data, training = config.data, config.training
    weights = [dataset.weight for dataset in data.training_sets if dataset.weight is not None]
    if not (data.packing or weights or data.mixing_maximum):
        return None, tuple(datasets), ()
    sizes = [len(dataset.examples) for dataset in datasets]
    mixed = mixture(sizes, weights or None, data.mixing_maximum)
    planned = plan(
        mixed,
        [len(example.ids) for example in _joined(datasets)],
        data.max_length if data.packing else None,
        training.seed,
        rows_per_step=training.batch_size * training.gradient_accumulation * training.devices,
        steps=training.steps,
        epochs=training.passes,
    )
    notes = []
    if weights or data.mixing_maximum:
        total = sum(mixed.draws)
        shares = [
            f"{count:,} ({count / total:.1%}) of {dataset.rows.title}"
            for count, dataset in zip(mixed.draws, datasets, strict=True)
        ]
        notes.append(f"mixing: an epoch draws {', '.join(shares)}")
        datasets = [
            replace(dataset, weight=format_decimal(count / total))
            for dataset, count in zip(datasets, mixed.draws, strict=True)
        ]
    if data.packing:
        examples = sum(len(row) for row in planned.rows)
        notes.append(
            f"packing: {examples:,} examples in {len(planned.rows):,} rows of up to {data.max_length} tokens, "
            f"{planned.filled:.0%} filled"
        )
    return planned, tuple(datasets), tuple(notes)


def _joined(datasets: Sequence[Dataset]) -> tuple[Example, ...]:
    return tuple(example for dataset in datasets for example in dataset.examples)
