"""Digests: "sha256:" and 64 lower-case hexadecimal digits, everywhere the same."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from weft_registry.errors import InvalidInputError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20


def of_bytes(data: bytes | memoryview) -> str:
    """The digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    """The digest of a file's bytes, read in chunks."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` is spelled as a digest is."""
    return _DIGEST.fullmatch(text) is not None


def check(text: str, field: str = "digest") -> str:
    """`text` if it is a digest; raises `InvalidInputError` naming `field` otherwise."""
    if not is_digest(text):
        raise InvalidInputError(f"{field}: {text[:100]!r} is not a digest: sha256:<64 lower-case hex digits>")
    return text
