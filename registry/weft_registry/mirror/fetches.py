"""One fetch of a blob that several may read while it arrives.

A thread of its own brings the bytes to a file and hashes them; readers follow the file. The last piece is given to
nobody before the whole has its digest, and only then is it stored.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from weft_registry.digest import CHUNK_BYTES
from weft_registry.errors import CorruptionError, ExhaustedError, UnavailableError, WeftError

STALL_S = 30.0
"""A reader gives up when nothing has arrived for so long."""
_log = logging.getLogger(__name__)


class Fetch:
    """Owns the file at `spool` while it runs. Any number of threads may follow it."""

    def __init__(self, digest: str, size: int, spool: Path, stall_s: float = STALL_S) -> None:
        self.digest, self.size = digest, size
        self._spool, self._stall_s = spool, stall_s
        self._sink = spool.open("xb")
        self._news = threading.Condition()
        self._arrived = 0
        self._verified = self._stored = False
        self._error: WeftError | None = None

    @property
    def failed(self) -> bool:
        """Whether it is over, and brought nothing."""
        return self._error is not None

    def run(self, chunks: Callable[[], Iterator[bytes]], store: Callable[[Path], None]) -> None:
        """Brings the bytes of `chunks()`, and has `store` keep them. Raises nothing: whoever follows is told."""
        try:
            self._receive(chunks())
            with self._news:
                self._verified = True
                self._news.notify_all()
            store(self._spool)
            with self._news:
                self._stored = True
                self._news.notify_all()
        except WeftError as error:
            self._fail(error)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            words = f"this mirror cannot keep blob {self.digest} ({error.strerror or error})"
            self._fail(ExhaustedError(words, reason="DISK_FULL") if full else UnavailableError(words))
        except Exception:  # noqa: BLE001
            # The end of a thread: whoever waits for it must hear of a bug, too.
            _log.exception("fetching blob %s failed unexpectedly", self.digest)
            self._fail(WeftError(f"fetching blob {self.digest} failed unexpectedly: the mirror's log says why"))
        finally:
            self._sink.close()

    def discard(self) -> None:
        """Removes the file. Nobody may `open` it any more; whoever has it open reads on."""
        self._spool.unlink(missing_ok=True)

    def open(self) -> BinaryIO:
        """The file, to follow."""
        return self._spool.open("rb")

    def follow(self, file: BinaryIO) -> Iterator[bytes]:
        """The blob's bytes as they arrive, the last piece once all have the digest. Closes `file`.

        Raises `CorruptionError` for bytes that have another, and what bringing them raised.
        """
        given = 0
        with file:
            while (ready := self._wait(given)) > given:
                while given < ready:
                    chunk = file.read(min(CHUNK_BYTES, ready - given))
                    given += len(chunk)
                    yield chunk

    def wait_stored(self) -> None:
        """Returns once the blob is stored, or was found not to be kept: its file is whole. Raises as `follow`."""
        with self._news:
            while not self._stored:
                self._raise_if_failed()
                before = (self._arrived, self._verified)
                # Storing takes as long as it takes; it is this machine that is at work then.
                if not self._news.wait(self._stall_s) and before == (self._arrived, False):
                    raise self._stalled()

    def _receive(self, chunks: Iterator[bytes]) -> None:
        sha256 = hashlib.sha256()
        arrived = 0
        for chunk in chunks:
            arrived += len(chunk)
            if arrived > self.size:
                break
            sha256.update(chunk)
            self._sink.write(chunk)
            self._sink.flush()
            with self._news:
                self._arrived = arrived
                self._news.notify_all()
        found = "sha256:" + sha256.hexdigest()
        if arrived != self.size or found != self.digest:
            raise CorruptionError(
                f"the upstream sent {arrived} bytes with digest {found} for blob {self.digest} of {self.size} bytes: "
                "nothing of it is kept",
                reason="DIGEST_MISMATCH",
                metadata={"digest": self.digest, "found": found},
            )

    def _wait(self, given: int) -> int:
        """How many bytes may be given, once they are more than `given`; or all there are."""
        with self._news:
            while True:
                if self._verified:
                    return self.size
                self._raise_if_failed()
                ready = min(self._arrived, self.size - CHUNK_BYTES)
                if ready > given:
                    return ready
                before = self._arrived
                if not self._news.wait(self._stall_s) and before == self._arrived and not self._verified:
                    raise self._stalled()

    def _raise_if_failed(self) -> None:
        error = self._error
        if error is not None:
            # One of its own for each thread that waits.
            raise type(error)(
                error.message, reason=error.reason, metadata=error.metadata, retry_after_s=error.retry_after_s
            ) from error

    def _fail(self, error: WeftError) -> None:
        with self._news:
            self._error = error
            self._news.notify_all()

    def _stalled(self) -> UnavailableError:
        return UnavailableError(
            f"nothing of blob {self.digest} has come from the upstream for {self._stall_s:g} s: try again",
            reason="UPSTREAM_STALLED",
            retry_after_s=5.0,
        )
