"""Scores an artifact, unmerged or merged, or the base alone, on a JSONL file."""

from __future__ import annotations

from pathlib import Path

import torch

from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.rows import choose, read_rows
from weft_trainer.data.tokenization import BaseTokenizer, tokenize
from weft_trainer.methods.worn import base_of, open_base, wear
from weft_trainer.objectives.score import Score, score
from weft_trainer.progress import Reporter


def evaluate(
    directory: Path | None,
    data: Path,
    report: Reporter,
    *,
    base: str | None = None,
    merged: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_length: int | None = None,
    rows: int | None = None,
    home: Home | None = None,
) -> Score:
    """The score of the artifact in `directory` (None: of the base alone) on the examples of `data`.

    `base` names the stored base; None takes the one whose weights the manifest names. `merged` scores the overlay that
    a server's merge makes instead of base plus delta. `max_length` None is the base's context length; `rows` limits
    how many examples are scored. Raises what reading, binding and merging raise.
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
    model = wear(stored, directory, dtype, home, merged=merged)
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    chosen = choose(read_rows(data, "eval"), rows, seed=0)
    dataset = tokenize(chosen, tokenizer, max_length or stored.spec.context_length)
    report.message(dataset.describe())
    return score(model, TokenBatches(dataset.examples, tokenizer.pad), dataset.examples, report)
