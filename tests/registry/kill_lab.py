"""A registry in a process of its own that can be killed and started again, and a client that does not give up."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tests.backends.servers import free_ports
from tests.registry.lab import BASE, python, raw_safetensors
from weft_registry import artifact, peft_format
from weft_registry.errors import UnavailableError
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.remote.registry import RemoteRegistry

T = TypeVar("T")

# `weft registry serve`, in which one real function may be replaced by the process's own death, before or after the real
# work of its n-th call.
_SERVE = """
import importlib, os, signal, sys
from weft_client.cli import main

port, owner, name, when, call = sys.argv[1:]
if owner:
    module, _, attribute = owner.partition(":")
    holder = importlib.import_module(module)
    holder = getattr(holder, attribute) if attribute else holder
    real, calls = getattr(holder, name), iter(range(1, 1 << 30))

    def dying(*arguments, **options):
        last = next(calls) == int(call)
        if not last or when == "after":
            answer = real(*arguments, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(holder, name, dying)
sys.argv = ["weft", "registry", "serve", "--port", port, "--http-port", "0", "--grace", "0"]
main()
"""

Fault = tuple[str, str, str, int]
"""Where a server kills itself: "module:class", function, "before" or "after", and in which call."""


class ServedRegistry:
    """Owns one server process at a time, always on the same port."""

    def __init__(self, home: Home) -> None:
        self._home = home
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self, fault: Fault | None = None) -> None:
        """Starts a server and waits until it answers."""
        owner, name, when, call = fault or ("", "", "", 0)
        process = python(_SERVE, str(self.port), owner, name, when, str(call), home=self._home)
        assert process.stdout is not None
        self.process = process
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready on "):
                return
        raise AssertionError(f"the server ended: {lines} {process.communicate(timeout=10)[1]}")

    def wait_killed(self, timeout_s: float = 120.0) -> None:
        """Waits until the server has killed itself."""
        assert self.process is not None
        _, errors = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == -signal.SIGKILL, errors
        self.process = None

    def kill(self) -> None:
        """Ends the server as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=60)
            self.process = None


def insist(call: Callable[[], T], timeout_s: float = 180.0) -> T:
    """What a call answers in the end, however often the registry cannot be reached meanwhile."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except UnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Client(threading.Thread):
    """Does something with a registry that is killed meanwhile; `done` raises what went wrong."""

    def __init__(self, address: str, act: Callable[[RemoteRegistry], Any]) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._act = act
        self._error: BaseException | None = None
        self.answer: Any = None

    def run(self) -> None:
        """See `threading.Thread.run`."""
        registry = RemoteRegistry(self._address)
        try:
            self.answer = self._act(registry)
        except BaseException as error:  # noqa: BLE001  # Handed to whoever asks for the answer.
            self._error = error
        finally:
            registry.close()

    def done(self, timeout_s: float = 240.0) -> Any:
        """What it was answered in the end."""
        self.join(timeout_s)
        assert not self.is_alive(), "the client has not come to an end"
        if self._error is not None:
            raise self._error
        return self.answer


def large_artifact(directory: Path, mebibytes: int, seed: int = 0) -> Path:
    """A valid artifact with so large a weights file, made without holding it in memory."""
    directory.mkdir(parents=True)
    rank, wide = 64, 8192
    modules = {f"model.layers.{layer}.mlp.down_proj": (wide, wide) for layer in range(-(-mebibytes // 4))}
    base = replace(BASE, num_layers=len(modules), linears=modules)
    params = LowRankParams(rank, 8.0, False, tuple(modules), {}, {})
    specs = kind_schema("lora").tensors(params, base)
    header, end = b"", 0
    entries = []
    for name, spec in specs.items():
        size = 4 * int(np.prod(spec.shape))
        entries.append(f'"{name}":{{"dtype":"F32","shape":{list(spec.shape)},"data_offsets":[{end},{end + size}]}}')
        end += size
    header = ("{" + ",".join(entries) + "}").encode()
    generator = np.random.default_rng(seed)
    with (directory / artifact.WEIGHTS).open("wb") as file:
        file.write(raw_safetensors(header, b""))
        for spec in specs.values():
            file.write(generator.standard_normal(spec.shape, dtype=np.float32).tobytes())
    config = peft_format.to_peft("lora", params, base)
    (directory / artifact.CONFIG).write_bytes(peft_format.config_bytes(config))
    manifest = artifact.describe(
        directory,
        kind="lora",
        adapter_block=kind_schema("lora").block(params),
        base=base.fingerprint,
        name="large",
        license="apache-2.0",
        created="2026-01-31T12:00:00Z",
    )
    artifact.write_manifest(directory, manifest)
    return directory
