"""Training and scoring as an experiment repeats them: real tasks, several seeds, means with 95% intervals."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.ledger import Ledger
from benchmarks.subjects import BASE_NAME, benchmark_home, real_base
from demo import tasks
from weft_registry import artifact
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_trainer.config import run as configs
from weft_trainer.evaluate import evaluate
from weft_trainer.objectives.score import Score
from weft_trainer.progress import QuietReporter
from weft_trainer.train import train

# Student's t at 97.5%, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Trained:
    """One training run."""

    artifact: Path
    manifest: Manifest
    cpu_seconds: float
    """Of all cores together: what training took, whatever else the machine did meanwhile."""

    @property
    def score(self) -> Score:
        """On the held-out examples, at the end of training."""
        found = {metric.name: float(metric.value) for metric in self.manifest.metrics if metric.split == "eval"}
        return Score(found["loss"], found["exact_match"], int(found["examples"]))

    @property
    def trained(self) -> int:
        """Numbers that were trained."""
        count: int = self.manifest.provenance["trained_parameters"]
        return count

    @property
    def stored(self) -> int:
        """Numbers in the artifact."""
        return sum(math.prod(tensor.shape) for tensor in self.manifest.tensors)


def home() -> Home:
    """The benchmarks' home, with the real base in it."""
    real_base(benchmark_home())
    return benchmark_home()


def ledger(name: str, *, resume: bool) -> Ledger:
    """What the benchmark of this name has found."""
    return Ledger(benchmark_home().cache / "ledgers" / name, resume=resume)


def data(task: str) -> tuple[Path, Path]:
    """The training and held-out files of a real task, fetched once."""
    return tasks.prepare(task, benchmark_home().cache / "tasks", benchmark_home().cache)


def run(
    task: str,
    method: str,
    seed: int,
    *,
    base: str = BASE_NAME,
    adapter: Mapping[str, Any],
    training: Mapping[str, Any],
    max_length: int = 96,
    eval_rows: int | None = None,
) -> Trained:
    """Trains one adapter on a task and scores it on the task's held-out examples."""
    train_file, eval_file = data(task)
    output = benchmark_home().cache / "runs" / f"{task}-{base}-{method}-{seed}"
    document = {
        "base": base,
        "method": method,
        "output": str(output),
        "data": {"train": str(train_file), "eval": str(eval_file), "max_length": max_length, "eval_rows": eval_rows},
        "adapter": dict(adapter),
        "training": {**training, "seed": seed},
    }
    begin = time.process_time()
    directory = train(configs.parse(document), QuietReporter(), home())
    return Trained(directory, artifact.read(directory), time.process_time() - begin)


def scored(
    task: str, directory: Path | None, base: str, *, merged: bool = False, eval_rows: int | None = None
) -> Score:
    """An artifact's score on a task's held-out examples, or the base's own."""
    return evaluate(
        directory,
        data(task)[1],
        QuietReporter(),
        base=base,
        merged=merged,
        dtype=torch.bfloat16,
        rows=eval_rows,
        home=home(),
    )


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95% interval by Student's t (0 for a single value)."""
    if len(values) < 2:
        return values[0], 0.0
    return statistics.fmean(values), _T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def say(line: str) -> None:
    """What is being done, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
