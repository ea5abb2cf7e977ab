"""A commit to a branch: files that are to have other bytes, and files that are to go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Put:
    """A file is to have these bytes."""

    path: str
    sha256: str
    """ "sha256:" and 64 digits."""
    size_bytes: int | None
    """None where the client refers to bytes that are there and does not say."""
    spooled: Path | None
    """The bytes; None: the namespace has shown them before, as an LFS object or as another file."""


@dataclass(frozen=True)
class Delete:
    """A file, or with `folder` everything under a path, is to go."""

    path: str
    folder: bool


@dataclass(frozen=True)
class Commit:
    """A commit that has arrived whole."""

    summary: str
    parent: str
    """The commit id, or its first digits, that the branch must be at; empty for whatever it is at."""
    operations: tuple[Put | Delete, ...]
    dropped: tuple[str, ...]
    """Files that clients send along and no artifact holds: see `weft_registry.workspaces.paths`."""
