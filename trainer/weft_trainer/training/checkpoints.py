"""The directory of a run's checkpoints: whose they are, which is the newest whole one, and when they may go.

Knows nothing of what is in them, except for the file that is written last.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from weft_registry.errors import InvalidInputError, NotFoundError
from weft_trainer.training.identity import Identity, changed

CONFIG_FILE = "config.json"
# transformers' Trainer writes it when all else of a checkpoint is there.
LAST_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def check_room(directory: Path) -> None:
    """Raises `InvalidInputError` if `directory` holds anything but a run's checkpoints."""
    if directory.is_dir() and any(directory.iterdir()) and not (directory / CONFIG_FILE).is_file():
        raise InvalidInputError(f"{directory} exists and holds no checkpoints of ours; move it away")


def claim(directory: Path, identity: Identity) -> None:
    """Makes `directory` a fresh run's own, before its first checkpoint or log line: those of an earlier run go.

    Raises what `check_room` raises.
    """
    check_room(directory)
    if directory.is_dir():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / CONFIG_FILE).write_text(json.dumps(identity, indent=1))


def to_resume(directory: Path, identity: Identity) -> Path:
    """The newest whole checkpoint of this run.

    Raises `NotFoundError` if there is none, `InvalidInputError` naming what changed if they are of another run.
    """
    record = directory / CONFIG_FILE
    last = newest(directory) if record.is_file() else None
    if last is None:
        raise NotFoundError(
            f"training.resume: no checkpoint in {directory}; start without resume, with training.save_every"
        )
    differing = changed(json.loads(record.read_text()), identity)
    if differing:
        raise InvalidInputError(
            f"training.resume: the checkpoints in {directory} are of another run: {', '.join(differing)} changed; "
            "restore it, or start without resume"
        )
    return last


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that led to it."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, f"{checkpoint} is a checkpoint's directory"
    return int(match[1])


def name_of(step: int) -> str:
    """The name of the directory of the checkpoint after so many optimizer steps."""
    return f"checkpoint-{step}"


def newest(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if any: a run that is killed while saving leaves another."""
    if not directory.is_dir():
        return None
    found = {int(match[1]): path for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))}
    return next((found[step] for step in sorted(found, reverse=True) if _is_whole(found[step])), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / LAST_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return True
