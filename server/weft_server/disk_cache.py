"""Pulled artifacts on disk, under one byte limit. Knows digests and files; no engine and no requests.

An artifact is a directory named by its version's digest. The directory may be shared by several servers on one machine:
whoever reads an artifact holds its directory with a shared lock, and only one that nobody holds is removed. Removing
begins with a rename, so that an artifact is there as a whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from weft_registry.api import RegistryApi, Version
from weft_registry.errors import ExhaustedError, PreconditionError
from weft_registry.transfer import pull

_log = logging.getLogger(__name__)
# An artifact, or what a broken-off pull of one has brought so far.
_NAME = re.compile(r"([0-9a-f]{64})|\.([0-9a-f]{64})\.[0-9a-f]+\.partial")
_ASIDE = ".evicted-"


@dataclass(frozen=True)
class Pulled:
    """One artifact on disk."""

    digest: str
    complete: bool
    """False for what a broken-off pull has brought; the next pull of the version goes on from there."""
    size_bytes: int
    last_used: float
    """Seconds since the epoch."""


class DiskCache:
    """Owns `directory`. Any thread may call it; everything but `pin`, `unpin` and `size_bytes` may wait for the
    disk."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Counts what is there from earlier, removes what was left half done, and meets the limit."""
        self.limit_bytes = limit_bytes
        self._directory = directory
        self._lock = threading.Lock()
        """Held for bookkeeping and renames; never while files are read, fetched or deleted."""
        self._found: dict[str, Pulled] = {}
        """By the directory's name."""
        self._pin_lock = threading.Lock()
        """Held for a moment only, for the event loop takes it."""
        self._pins: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        """When each digest was last unpinned."""
        self._reserved_bytes = 0
        """Promised to artifacts that are being pulled."""
        self._remove_leftovers()
        with self._lock:
            self._scan()
            aside = self._set_aside_oldest(self._total() - limit_bytes)
        _delete(aside)

    @property
    def size_bytes(self) -> int:
        """What the artifacts on disk take, those that are being pulled included. Waits for nothing."""
        return self._total()

    def pin(self, digest: str) -> None:
        """From now on the artifact is not removed: it is in memory, or on its way there."""
        with self._pin_lock:
            self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Takes one `pin` back; the artifact counts as used until now."""
        with self._pin_lock:
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
            self._used[digest] = time.time()

    def artifacts(self) -> list[Pulled]:
        """The whole artifacts on disk, most recently used first."""
        with self._lock:
            self._scan()
            whole = [replace(p, last_used=self._last_used(p)) for p in self._found.values() if p.complete]
        return sorted(whole, key=lambda pulled: pulled.last_used, reverse=True)

    def path(self, digest: str) -> Path:
        """Where the artifact of a version is, or would be."""
        return self._directory / digest.removeprefix("sha256:")

    @contextmanager
    def artifact(self, registry: RegistryApi, version: Version) -> Iterator[Path]:
        """The version's directory, every file verified by its digest, there as long as the context lasts.

        The registry is asked only for files that are not here. Raises what `transfer.pull` raises, and
        `ExhaustedError` when the artifact does not fit.
        """
        path = self.path(version.digest)
        self.pin(version.digest)
        try:
            while True:
                self._bring(registry, version, path)
                with _shared(path) as here:
                    # Another server may have removed it between the pull and the lock.
                    if here:
                        os.utime(path)
                        yield path
                        return
        finally:
            self.unpin(version.digest)

    def _bring(self, registry: RegistryApi, version: Version, path: Path) -> None:
        reserved_bytes = self._reserve(version)
        try:
            _pull(registry, version, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ExhaustedError(
                f"no space left in {self._directory} for the {version.size_bytes} bytes of {version.adapter} "
                f"({version.digest}): free some, or lower --disk-cache",
                reason="DISK_FULL",
                retry_after_s=10.0,
            ) from error
        finally:
            with self._lock:
                self._reserved_bytes -= reserved_bytes
                self._scan_names()

    def _reserve(self, version: Version) -> int:
        """Makes room for an artifact that is not here, and answers how much. Raises `ExhaustedError`, and then nothing
        was removed."""
        wanted = version.size_bytes + len(version.manifest_bytes)
        with self._lock:
            if self.path(version.digest).name in self._found:
                return 0
            if self._total() + wanted > self.limit_bytes:
                self._scan()
            excess = self._total() + wanted - self.limit_bytes
            if wanted > self.limit_bytes:
                raise ExhaustedError(
                    f"adapter {version.adapter} ({version.digest}) takes {wanted} bytes on disk; the limit for all "
                    f"pulled adapters together is {self.limit_bytes}: raise --disk-cache",
                    reason="DISK_CACHE",
                    metadata={"needed_bytes": str(wanted), "limit_bytes": str(self.limit_bytes)},
                )
            if sum(pulled.size_bytes for _, pulled in self._idle()) < excess:
                raise ExhaustedError(
                    f"adapter {version.adapter} ({version.digest}) takes {wanted} bytes on disk; of the "
                    f"{self.limit_bytes} for pulled adapters {self._total()} belong to adapters in memory or on their "
                    "way there: come back later, or raise --disk-cache",
                    reason="DISK_CACHE",
                    metadata={"needed_bytes": str(wanted), "limit_bytes": str(self.limit_bytes)},
                    retry_after_s=1.0,
                )
            aside = self._set_aside_oldest(excess)
            self._reserved_bytes += wanted
        _delete(aside)
        return wanted

    def _idle(self) -> list[tuple[str, Pulled]]:
        with self._pin_lock:
            pinned = set(self._pins)
        return [(name, pulled) for name, pulled in self._found.items() if pulled.digest not in pinned]

    def _last_used(self, pulled: Pulled) -> float:
        """By this server or another one."""
        with self._pin_lock:
            return max(pulled.last_used, self._used.get(pulled.digest, 0.0))

    def _set_aside_oldest(self, excess: int) -> list[Path]:
        """Takes the least recently used artifacts out until `excess` bytes are freed; what is left is to delete them.

        What another server is reading right now stays.
        """
        aside: list[Path] = []
        for name, pulled in sorted(self._idle(), key=lambda item: self._last_used(item[1])):
            if excess <= 0:
                break
            gone = _set_aside(self._directory / name)
            if gone is not None:
                aside.append(gone)
                excess -= pulled.size_bytes
                del self._found[name]
        return aside

    def _total(self) -> int:
        return sum(pulled.size_bytes for pulled in list(self._found.values())) + self._reserved_bytes

    def _scan(self) -> None:
        """Counts what is there: other servers add and remove artifacts too."""
        self._found = {}
        self._scan_names()
        with self._pin_lock:
            self._used = {d: at for d, at in self._used.items() if d in self._pins or self.path(d).name in self._found}

    def _scan_names(self) -> None:
        """As `_scan`, but looks only into directories that it does not know: a whole artifact stays as large as it is,
        and when another server last used it matters only to who goes first."""
        found: dict[str, Pulled] = {}
        if self._directory.is_dir():
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    pulled = self._found.get(entry.name)
                    if pulled is None or not pulled.complete:
                        pulled = _look_into(entry)
                    if pulled is not None:
                        found[entry.name] = pulled
        self._found = found

    def _remove_leftovers(self) -> None:
        if not self._directory.is_dir():
            return
        for path in list(self._directory.iterdir()):
            if _ASIDE in path.name:
                _delete([path])
            elif path.name.endswith(".partial") and _NAME.fullmatch(path.name):
                aside = _set_aside(path)
                _delete([aside] if aside else [])


def _look_into(entry: os.DirEntry[str]) -> Pulled | None:
    """What a directory holds; None for what is not an artifact, or was removed by another server just now."""
    match = _NAME.fullmatch(entry.name)
    if match is None or not entry.is_dir(follow_symlinks=False):
        return None
    try:
        with os.scandir(entry.path) as files:
            size_bytes = sum(file.stat().st_size for file in files)
        return Pulled(f"sha256:{match[1] or match[2]}", match[1] is not None, size_bytes, entry.stat().st_mtime)
    except FileNotFoundError:
        return None


def _pull(registry: RegistryApi, version: Version, path: Path) -> None:
    try:
        pull(registry, version, path)
    except PreconditionError as error:
        if error.reason != "DESTINATION_EXISTS":
            raise
        # The directory is named by the digest and holds something else: it was changed on the disk.
        _log.warning("%s: %s; fetching it again", version.adapter, error)
        aside = _set_aside(path, even_held=True)
        _delete([aside] if aside else [])
        pull(registry, version, path)


@contextmanager
def _shared(path: Path) -> Iterator[bool]:
    """Holds a directory against being removed; false if it was removed before."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        os.close(descriptor)


def _set_aside(path: Path, *, even_held: bool = False) -> Path | None:
    """Renames a directory that is to be deleted; None if somebody holds it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if not even_held:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.rename(path.with_name(f"{_ASIDE}{uuid.uuid4().hex}"))
    except (BlockingIOError, FileNotFoundError):
        return None
    finally:
        os.close(descriptor)


def _delete(directories: list[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
