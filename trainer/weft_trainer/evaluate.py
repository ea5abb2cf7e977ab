"""Scores an artifact, unmerged or merged, or the base alone, on a file of examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from weft_registry import artifact
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.dataset import Bound
from weft_trainer.data.phrasing import FieldRecords
from weft_trainer.data.records import read_records
from weft_trainer.data.rows import Rows, choose, read_rows
from weft_trainer.data.templates import load_templates
from weft_trainer.data.tokenization import BaseTokenizer, tokenize
from weft_trainer.methods.virtual_tokens import Room
from weft_trainer.methods.worn import base_of, open_base, wear
from weft_trainer.objectives.score import Score, score
from weft_trainer.progress import Reporter

_INSTEAD = "say with --stack-on what else lies below (none: nothing)"
"""What to do where an adapter lies on one that is yanked."""


def evaluate(
    directory: Path | None,
    data: Path,
    report: Reporter,
    *,
    base: str | None = None,
    merged: bool = False,
    dtype: torch.dtype | None = None,
    max_length: int | None = None,
    rows: int | None = None,
    form: str | None = None,
    templates: Path | None = None,
    stack_on: Sequence[str] | None = None,
    home: Home | None = None,
) -> Score:
    """The score of the artifact in `directory` (None: of the base alone) on the examples of `data`.

    `base` names the stored base; None takes the one whose weights the manifest names. `merged` scores the overlay that
    a server's merge makes instead of base plus delta. `max_length` None is the base's context length, less what the
    adapter takes of it; longer examples lose the start of their prompt, as in training. `rows` limits
    how many records are scored; `form` is what each must be, as `data.format` has it, and None what its keys say;
    `dtype` None computes in what is fastest here. `templates` (YAML) writes the records as in training: each with a
    template of training and, if there are any, with a held-out one, scored apart. `stack_on` are the adapters below a
    bottleneck adapter, the lowest first; None: those that it was trained on. Raises what reading, binding and merging
    raise.
    """
    home = home or Home.from_environment()
    if directory is None:
        if base is None:
            raise InvalidInputError("base: say which base to score: there is no artifact that names one")
        if merged:
            raise InvalidInputError("merged: there is no artifact to merge")
        stored = open_base(base, home)
    else:
        stored = base_of(directory, base, home)
    length, bound = _longest(directory, stored.spec, max_length)
    model = wear(stored, directory, dtype, home, merged=merged, stack_on=stack_on, instead=_INSTEAD)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    datasets = [tokenize(part, tokenizer, length, bound=bound) for part in _read(data, form, templates, rows)]
    for dataset in datasets:
        report.message(dataset.describe())
    examples = tuple(example for dataset in datasets for example in dataset.examples)
    groups = [dataset.rows.title for dataset in datasets for _ in dataset.examples] if len(datasets) > 1 else ()
    return score(model, TokenBatches(examples, tokenizer.pad), examples, report, groups=groups)


def _longest(directory: Path | None, base: BaseSpec, most: int | None) -> tuple[int, Bound]:
    """How many tokens of an example a model reads, and what says so. Raises `InvalidInputError` where that is less than
    the two that an example has at least."""
    manifest = None if directory is None else artifact.read(directory)
    room = Room.of(manifest, base)
    if manifest is not None and room.tokens < 2:
        raise InvalidInputError(
            f"adapter {manifest.name!r}: the context of this base holds {room.tokens} tokens{room.less}, and an "
            "example has at least two; train it again with a lower adapter.num_virtual_tokens"
        )
    if most is not None and most < room.tokens:
        return most, Bound("max_length", "raise it")
    fewer = ", or an adapter with fewer virtual tokens" if room.virtual else ""
    name = f"what the base's context holds{room.less}"
    return room.tokens, Bound(name, f"shorten the answers, or take a base with a longer context{fewer}")


def _read(data: Path, form: str | None, templates: Path | None, rows: int | None) -> list[Rows]:
    if templates is None:
        return [choose(read_rows(data, "eval", form), rows, seed=0)]
    if form is not None:
        raise InvalidInputError("format: templates decide what a record is; leave it out")
    file = read_records(data)
    records = choose(FieldRecords(file, file.records, "eval"), rows, seed=0)
    return records.evaluation_rows(load_templates(templates), 0, None)
