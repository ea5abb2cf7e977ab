"""What makes two runs the same one, so that one may go on from the other's checkpoints: the settings that decide what
is trained, and what the names among them stood for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from weft_registry import digest as digests
from weft_registry.errors import NotFoundError
from weft_trainer.config.run import TrainConfig

Identity: TypeAlias = Mapping[str, Any]
"""JSON, flat: {"training.seed": 0, ...}."""

# What may change between a run and its continuation without making it another run.
_FREE_KEYS = ("resume", "log_every", "keep_checkpoints", "save_every", "tensorboard", "gradient_checkpointing")
_BLOCKS = ("data", "adapter", "objective", "training")
_DATA = ("data.train", "data.eval")
_FILES = ("path", "templates")


def identity_of(config: TrainConfig, stands_for: Mapping[str, Any]) -> Identity:
    """A run's. Data and templates count by content: a file that was moved is the same, one that was edited is not.

    `stands_for` says what other names stood for, by their keys: {"base": "sha256:..."}; None for a name that stands for
    itself. Raises `NotFoundError` for a file that is not there.
    """
    flat: dict[str, Any] = {}
    for key, value in replace(config, output=Path(config.output.name)).as_json().items():
        nested = value if isinstance(value, dict) and key in _BLOCKS else {"": value}
        flat.update({f"{key}.{k}" if k else key: v for k, v in nested.items() if k not in _FREE_KEYS})
    for key in _DATA:
        flat[key] = _contents(key, flat[key])
    return flat | {key: value for key, value in stands_for.items() if value is not None}


def changed(before: Identity, now: Identity) -> Sequence[str]:
    """The keys in which two runs differ."""
    return sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))


def _contents(key: str, files: Any) -> Any:
    if isinstance(files, str):
        return _content(key, files)
    if files is None:
        return None
    return [{**one, **{name: _content(key, one[name]) for name in _FILES if one[name] is not None}} for one in files]


def _content(key: str, path: str) -> str:
    try:
        return digests.of_file(Path(path))
    except OSError as error:
        raise NotFoundError(f"{key}: {path} cannot be read: {error.strerror}; give a file of records") from error
