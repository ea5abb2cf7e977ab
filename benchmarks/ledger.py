"""What an experiment of hours has found so far, so that it goes on where it was stopped (`--resume`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weft import __version__

Values = Mapping[str, float]


class Ledger:
    """One file for each thing measured, named by all that it depends on.

    A new run measures everything again. With `resume` what an earlier run of the same Weft found stands.
    """

    def __init__(self, directory: Path, *, resume: bool) -> None:
        self._directory, self._resume = directory, resume
        directory.mkdir(parents=True, exist_ok=True)

    def values(self, key: Mapping[str, Any], measure: Callable[[], Values]) -> Values:
        """What was found for `key` (JSON), or what `measure` finds now."""
        text = json.dumps({"weft": __version__, **key}, sort_keys=True)
        path = self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        if self._resume and path.is_file():
            found: dict[str, float] = json.loads(path.read_text())["values"]
            return found
        values = measure()
        written = path.with_suffix(".partial")
        written.write_text(json.dumps({"key": json.loads(text), "values": dict(values)}, indent=1) + "\n")
        written.replace(path)
        return values
