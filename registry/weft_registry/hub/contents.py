"""A file's content inside a commit: base64 as it comes, decoded, hashed and written to a temporary file."""

from __future__ import annotations

import binascii
import hashlib
from pathlib import Path
from typing import BinaryIO


class Content:
    """One file's bytes on their way to a temporary file."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """`path`: of the temporary file, which must not be there yet."""
        self.path = path
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._sha256 = hashlib.sha256()
        self._rest = b""
        self._ended = False
        self._file: BinaryIO = path.open("xb")

    @property
    def sha256(self) -> str:
        """ "sha256:" and 64 digits, of what has come so far."""
        return "sha256:" + self._sha256.hexdigest()

    def add(self, encoded: bytes) -> None:
        """More base64. Raises `ValueError`."""
        encoded = self._rest + encoded
        whole = len(encoded) - len(encoded) % 4
        self._rest = encoded[whole:]
        if not whole:
            return
        if self._ended:
            raise ValueError("not base64: characters after its end")
        try:
            # Strictly: what is no base64 must not become other bytes than were meant.
            data = binascii.a2b_base64(encoded[:whole], strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"not base64 without line ends and escapes ({error})") from error
        self._ended = encoded[whole - 1] == ord("=")
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise ValueError(f"more than {self._max_bytes} bytes: send it through LFS or with `weft push`")
        self._sha256.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """The content has ended. Raises `ValueError`."""
        self._file.close()
        if self._rest:
            raise ValueError("not base64: its length is no multiple of 4")

    def close(self) -> None:
        """Lets the file go; it stays where it is."""
        self._file.close()
