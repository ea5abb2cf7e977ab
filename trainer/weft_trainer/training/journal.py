"""What a run measures on the way, where people and programs can follow it: a JSONL file and TensorBoard's event files.

One line, or one set of scalars, per log of the Trainer:

    {"step": 20, "loss": 1.25, "learning_rate": 0.0009, "grad_norm": 0.7, "tokens_per_s": 812.5, "time": "2026-..."}
    {"step": 20, "eval_loss": 1.31, "eval_exact_match": 0.25, "time": "2026-..."}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from weft_registry.errors import PreconditionError

LOG_FILE = "log.jsonl"
_TAGS: Mapping[str, str] = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_s": "train/tokens_per_s",
    "eval_loss": "eval/loss",
    "eval_exact_match": "eval/exact_match",
    "eval_reward_accuracy": "eval/reward_accuracy",
    "eval_reward_margin": "eval/reward_margin",
}


class Journal(Protocol):
    """Takes the run's figures."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of one step, by the names of `_TAGS`."""
        ...

    def close(self) -> None:
        """Writes out what is left."""
        ...


class JsonLines:
    """`log.jsonl` beside the checkpoints. A run that resumes goes on in it, behind the step it resumes from; of that
    step's evaluation too only if it was `evaluated`, as far as the checkpoint knows."""

    def __init__(self, directory: Path, from_step: int, *, evaluated: bool = True) -> None:
        path = directory / LOG_FILE
        kept = _until(path, from_step, evaluated) if from_step and path.is_file() else ""
        # Unbuffered by lines: what is logged is in the file when the process is killed.
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._file.write(kept)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See `Journal.write`."""
        line = {"step": step, **values, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """See `Journal.close`."""
        self._file.close()


class TensorBoard:
    """Event files for `tensorboard --logdir`, through tensorboardX: the writer alone, in a hundredth of the size."""

    def __init__(self, directory: Path, from_step: int) -> None:
        from tensorboardX import SummaryWriter

        if not from_step:
            # The output of a fresh run replaces an earlier one's, and so do its curves.
            for old in directory.glob("events.out.tfevents.*"):
                old.unlink()
        # Steps from here on that an interrupted run wrote already are hidden.
        purge = {"purge_step": from_step + 1} if from_step else {}
        self._writer: Any = SummaryWriter(logdir=str(directory), **purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See `Journal.write`."""
        for name, value in values.items():
            self._writer.add_scalar(_TAGS[name], value, step)

    def close(self) -> None:
        """See `Journal.close`."""
        self._writer.close()


def check_tensorboard() -> None:
    """Raises `PreconditionError` if there is nothing to write event files with."""
    if find_spec("tensorboardX") is None:
        raise PreconditionError(
            "training.tensorboard needs the package tensorboardX, which is not installed: pip install tensorboardX, or "
            "leave training.tensorboard out (log.jsonl beside the checkpoints has the same figures)",
            reason="PACKAGE_MISSING",
        )


def figures(logs: Mapping[str, Any]) -> dict[str, float]:
    """What of the Trainer's logs is a figure of ours."""
    return {name: float(logs[name]) for name in _TAGS if name in logs}


def _until(path: Path, step: int, evaluated: bool) -> str:
    """The whole lines of a log up to `step`, without the evaluation of that step unless it was `evaluated`."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        entry = json.loads(line)
        if entry["step"] > step or (entry["step"] == step and "eval_loss" in entry and not evaluated):
            break
        kept.append(line)
    return "".join(kept)
