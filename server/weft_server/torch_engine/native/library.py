"""Builds the C sources once for this machine, and loads them.

They are plain C without torch's headers: three seconds with any C compiler, and no tie to one version of torch or of
Python. The library is cached by the digest of everything that went into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from ctypes import POINTER, c_int, c_void_p
from functools import cache
from pathlib import Path

from weft_registry.errors import UnsupportedError
from weft_server.torch_engine.native.layout import Op

_SOURCES = Path(__file__).resolve().parent / "src"
_FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mf16c", "-mfma"),
)
_NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "f16c", "fma")


def unsupported_here() -> str | None:
    """Why the native decoder cannot run on this machine, in words; None when it can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"it is written for x86-64, and this machine is {platform.machine()}"
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return "it runs on Linux, and this system has no /proc/cpuinfo"
    flags = next((line.split() for line in info.read_text().splitlines() if line.startswith("flags")), [])
    missing = [flag for flag in _NEEDED if flag not in flags]
    return f"this processor lacks {', '.join(missing)}" if missing else None


def find_compiler() -> list[str] | None:
    """The C compiler as a command line: CC, or the one Python was built with, or `cc`. None when there is none."""
    for candidate in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        command = shlex.split(candidate) if candidate else []
        if command and shutil.which(command[0]):
            return command[:1]
    return None


def built(directory: Path) -> Path:
    """The library, compiled into `directory` unless it is there already.

    Raises `UnsupportedError`, with the compiler's own words, when it cannot be compiled.
    """
    compiler = find_compiler()
    sources = sorted(_SOURCES.iterdir())
    text = b"\0".join(path.read_bytes() for path in sources)
    key = hashlib.sha256(b"\0".join((text, " ".join(_FLAGS).encode(), platform.machine().encode()))).hexdigest()[:16]
    library = directory / f"weft-native-{key}.so"
    if library.is_file():
        return library
    if compiler is None:
        raise UnsupportedError("no C compiler was found (CC, cc, gcc, clang)", reason="NO_COMPILER")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        out = Path(scratch) / library.name
        files = [str(path) for path in sources if path.suffix == ".c"]
        done = subprocess.run([*compiler, *_FLAGS, *files, "-o", str(out), "-lm"], capture_output=True, text=True)
        if done.returncode:
            raise UnsupportedError(f"{shlex.join(compiler)} failed: {done.stderr.strip()}", reason="COMPILE_FAILED")
        # Several processes may build at once; each moves a whole file into place.
        out.replace(library)
    return library


@cache
def load(path: Path) -> ctypes.CDLL:
    """The library's functions, typed."""
    library = ctypes.CDLL(str(path))
    library.weft_team_open.argtypes, library.weft_team_open.restype = [c_int], c_void_p
    library.weft_team_close.argtypes, library.weft_team_close.restype = [c_void_p], None
    library.weft_run.argtypes, library.weft_run.restype = [c_void_p, POINTER(Op), c_int], None
    return library


class Team:
    """Threads that run programs. One caller at a time."""

    def __init__(self, library: Path, num_threads: int) -> None:
        self._team: int | None = None
        self._library = load(library)
        self._team = self._library.weft_team_open(num_threads)
        if not self._team:
            raise UnsupportedError(f"{num_threads} threads could not be started", reason="NO_THREADS")

    def run(self, ops: ctypes.Array[Op]) -> None:
        """Runs a program to its end, without Python's lock."""
        self._library.weft_run(self._team, ops, len(ops))

    def close(self) -> None:
        """Ends the threads."""
        if self._team:
            self._library.weft_team_close(self._team)
            self._team = None

    def __del__(self) -> None:
        self.close()
