"""What the command line calls. Importing this module imports neither torch nor transformers; calling it does.

Progress goes to standard error unless `report` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_trainer.config import run as configs

if TYPE_CHECKING:
    import torch

    from weft_trainer.label import Labelled
    from weft_trainer.progress import Reporter


def train_from_file(path: Path, overrides: Sequence[str] = (), report: Reporter | None = None) -> Path:
    """`weft train PATH [key=value ...]`: trains one adapter, returns its artifact directory.

    Raises the errors of `weft_registry.errors`; where they are about a setting, with the line that says it.
    """
    config, source = configs.load_with_source(path, overrides)
    with configs.locating(source):
        return train(config, report)


def train(config: configs.TrainConfig, report: Reporter | None = None) -> Path:
    """Trains one adapter, returns its artifact directory."""
    from weft_trainer.progress import ConsoleReporter
    from weft_trainer.quiet import quiet_transformers

    quiet_transformers()
    from weft_trainer import train as run

    return run.train(config, report or ConsoleReporter())


def evaluate_artifact(
    artifact: Path | None,
    data: Path,
    base: str | None = None,
    merged: bool = False,
    *,
    dtype: str = "auto",
    rows: int | None = None,
    form: str | None = None,
    templates: Path | None = None,
    stack_on: Sequence[str] | None = None,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """`weft eval ARTIFACT DATA`: {"loss", "exact_match", "examples"}, and with held-out `templates` (a YAML file) the
    same for each of "parts", by name.

    `artifact` None scores the base alone, and then needs `base`. `merged` scores what a merge makes. `form` is what
    each record must be, as `data.format` has it; None: what its keys say. `stack_on` lie below a bottleneck adapter;
    None: what it was trained on. Raises the errors of `weft_registry.errors`.
    """
    from weft_trainer.progress import ConsoleReporter
    from weft_trainer.quiet import quiet_transformers

    quiet_transformers()
    from weft_trainer import evaluate as scoring

    result = scoring.evaluate(
        artifact,
        data,
        report or ConsoleReporter(),
        base=base,
        merged=merged,
        dtype=_dtype(dtype),
        rows=rows,
        form=form,
        templates=templates,
        stack_on=stack_on,
    )
    scores = {**result.figures(), "examples": result.examples}
    parts = {part.name: {**part.score.figures(), "examples": part.score.examples} for part in result.parts}
    return scores | ({"parts": parts} if parts else {})


def requantize_base(
    source: str,
    name: str,
    *,
    bits: int,
    group_size: int,
    calibration: Path | None = None,
    samples: int = 128,
    length: int = 256,
    merge: Path | None = None,
    report: Reporter | None = None,
) -> BaseSpec:
    """`weft base requantize SOURCE NAME`: see `weft_trainer.requantize.requantize`."""
    from weft_trainer.progress import ConsoleReporter
    from weft_trainer.quiet import quiet_transformers

    quiet_transformers()
    from weft_trainer import requantize as run

    return run.requantize(
        source,
        name,
        report or ConsoleReporter(),
        bits=bits,
        group_size=group_size,
        calibration=calibration,
        samples=samples,
        length=length,
        merge=merge,
    )


def label_pairs(
    data: Path,
    output: Path,
    base: str,
    *,
    artifact: Path | None = None,
    merged: bool = False,
    template: Path | None = None,
    min_margin: float = 0.0,
    dtype: str = "auto",
    report: Reporter | None = None,
) -> Labelled:
    """`weft label DATA --judge BASE+ARTIFACT -o OUTPUT`: see `weft_trainer.label.label`. `template` is a YAML file."""
    from weft_trainer.progress import ConsoleReporter
    from weft_trainer.quiet import quiet_transformers

    quiet_transformers()
    from weft_trainer import label as run
    from weft_trainer.data.judging import load_template

    return run.label(
        data,
        output,
        report or ConsoleReporter(),
        base=base,
        artifact=artifact,
        merged=merged,
        template=load_template(template) if template is not None else None,
        min_margin=min_margin,
        dtype=_dtype(dtype),
    )


def _dtype(name: str) -> torch.dtype | None:
    """None for "auto": what is fastest here."""
    from weft_trainer.modeling.base import DTYPES

    if name == "auto":
        return None
    if name not in DTYPES:
        raise InvalidInputError(f"dtype: {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]
