"""Another engine in a process of its own, so that neither side's worker threads get in the other's way."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HOST = Path(__file__).parent / "peers" / "host.py"


class PeerProcess:
    """One peer of `benchmarks/peers`, run by the Python it was installed for. Owns the process."""

    def __init__(self, python: Path, module: str, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        # How this process's threads wait was decided in `benchmarks`; a peer decides for itself.
        inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        self._process = subprocess.Popen(
            [str(python), str(_HOST), module, json.dumps(settings)],
            env={**inherited, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._module = module

    def wait_ready(self) -> str:
        """What it says it is, once it has loaded. Raises `RuntimeError` if it ends instead."""
        about: str = self._read()["ready"]
        return about

    def generate(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], new: int
    ) -> tuple[list[list[int]], float]:
        """The greedy tokens of each prompt, and the seconds that the peer took."""
        assert self._process.stdin is not None
        asked = {"prompts": [list(prompt) for prompt in prompts], "adapters": list(adapters), "new": new}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return answer["tokens"], answer["seconds"]

    def close(self) -> None:
        """Ends the process, at once: it has nothing to save, and vLLM takes long to leave."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with status {self._process.wait()}; its own words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer
