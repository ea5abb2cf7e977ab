"""Servers as processes of their own."""

import os
import subprocess
import sys

from weft_registry.home import Home


def start(home: Home, name: str, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, once it says that it is ready."""
    command = [sys.executable, "-m", "weft_client.cli", "serve", "--base", name, "--port", "0", *options]
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    environment.pop("WEFT_REGISTRY", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready on 127.0.0.1:"), line
    return process, line.removeprefix("ready on ").strip()
