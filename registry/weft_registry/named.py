"""An artifact as people name it: a directory, or else the reference of a published version.

`runs/topics` can be either. So whoever mistyped a directory hears of both.
"""

from __future__ import annotations

import os.path
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.reference import Reference


def directory_of(text: str) -> Path | None:
    """The directory that is there; None for a reference, to be resolved within `or_directory`.

    Raises `NotFoundError` for a path where no directory is, `InvalidInputError` for what is no reference either.
    """
    if text.startswith((".", "/", "~")):
        return directory_at(text)
    directory = Path(text)
    if directory.is_dir():
        return directory
    try:
        Reference.parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"no artifact directory is at {text}, and a published version's reference it is not: {error.message}"
        ) from error
    return None


def directory_at(path: str) -> Path:
    """The directory at a path, `~` written out. Raises `NotFoundError` where none is."""
    # Unlike pathlib's, this leaves the home of somebody who is not known here as it is: there is no such directory.
    directory = Path(os.path.expanduser(path))
    if not directory.is_dir():
        raise NotFoundError(f"no artifact directory at {path}", reason="DIRECTORY_NOT_FOUND")
    return directory


@contextmanager
def or_directory(text: str) -> Generator[None]:
    """Within it, a version that is not there is not there as a directory either, where `text` could be meant as one."""
    try:
        yield
    except NotFoundError as error:
        if error.reason == "YANKED" or ":" in text or "@" in text:
            raise
        raise NotFoundError(
            f"{error.message}; and no directory {text} is here", reason=error.reason, metadata=error.metadata
        ) from error
