"""A real `weft serve` in a process of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.subjects import BASE_NAME
from weft_registry.home import Home

CLI = (sys.executable, "-m", "weft_client.cli")
_STOP_S = 60


class ServerProcess:
    """Serves the benchmark's base from one home. Owns the process: `stop` ends it, and nothing else."""

    def __init__(self, home: Home, options: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*CLI, "serve", "--base", BASE_NAME, "--port", "0", *options],
            env={**os.environ, "WEFT_HOME": str(home.root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def wait_ready(self) -> str:
        """Its HOST:PORT, once requests are welcome. Raises `RuntimeError` if it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready on "):
            raise RuntimeError(f"weft serve ended with status {self._process.wait()}; its own words are above")
        return line.removeprefix("ready on ").strip()

    def stop(self) -> None:
        """Ends it as Ctrl-C would; by force if that takes longer than a minute."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
