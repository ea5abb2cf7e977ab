"""An artifact as a command is given it: a directory, or the reference of a published version."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from weft_client.cli.pull import fetch
from weft_registry.named import directory_of, or_directory


@contextmanager
def artifact_directory(artifact: str, registry_target: str | None, quiet: bool) -> Generator[Path]:
    """The directory that is there, or one that the version is pulled to for as long as it is used."""
    here = directory_of(artifact)
    if here is not None:
        yield here
        return
    with tempfile.TemporaryDirectory(prefix="weft-artifact-") as scratch:
        directory = Path(scratch) / "artifact"
        with or_directory(artifact):
            fetch(artifact, directory, registry_target, quiet)
        yield directory
