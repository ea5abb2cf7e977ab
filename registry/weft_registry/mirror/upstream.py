"""The registry that a mirror stands before: asked for a bounded time, and left alone for a while when it is away."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

from weft_registry.errors import DeadlineError, ForbiddenError, NotFoundError, UnauthenticatedError, UnavailableError
from weft_registry.remote.registry import RemoteRegistry

TOKEN_VARIABLE = "WEFT_UPSTREAM_TOKEN"
ASK_S = 3.0
"""How long an upstream has to answer a short question."""
RETRY_S = 5.0
"""How long an upstream that did not answer is not asked again: those who ask meanwhile are not held up."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class UnreachableError(UnavailableError):
    """The upstream did not answer, or not long ago (`UPSTREAM_UNREACHABLE`)."""

    default_reason = "UPSTREAM_UNREACHABLE"


class _Impatient(RemoteRegistry):
    """Asks once: a mirror has an answer of its own for when there is none."""

    def _retried(self, call: Callable[[], T]) -> T:
        return self._once(call)


class Upstream:
    """Owns the connection, and what is known of whether anybody answers there. Thread-safe."""

    def __init__(self, target: str, token: str | None = None, ask_s: float = ASK_S, retry_s: float = RETRY_S) -> None:
        """`token`: the mirror's own; by default what WEFT_UPSTREAM_TOKEN says, or `weft login` stored for `target`.

        Connects to nobody yet. Raises `InvalidInputError` for an address that is none.
        """
        self.target = target
        self.remote: RemoteRegistry = _Impatient(target, ask_s, token=token or os.environ.get(TOKEN_VARIABLE) or None)
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._failed_since: datetime | None = None
        self._ask_again = 0.0

    @property
    def failed_since(self) -> datetime | None:
        """When it stopped answering; None while it answers."""
        return self._failed_since

    @property
    def stale_note(self) -> str:
        """What answers say that it did not confirm."""
        since = self._failed_since or datetime.now(UTC)
        return f"since={since:%Y-%m-%dT%H:%M:%SZ}; upstream={self.target}"

    def ask(self, question: Callable[[RemoteRegistry], T]) -> T:
        """What the upstream answers.

        Raises `UnreachableError` where it does not, `UnavailableError` (`UPSTREAM_REFUSES`) where it does not take the
        mirror's token, and whatever else it answers.
        """
        with self._answering():
            return question(self.remote)

    def read_blob(self, digest: str) -> Iterator[bytes]:
        """A blob's bytes, not hashed. Raises as `ask`."""
        try:
            with self._answering():
                yield from self.remote.read_blob(digest)
        except NotFoundError as error:
            raise NotFoundError(
                f"blob {digest} is not held here, and the upstream {self.target} has it no more",
                reason=error.reason,
                metadata=error.metadata,
            ) from error

    def close(self) -> None:
        """Ends the connection."""
        self.remote.close()

    def _answering(self) -> _Answering:
        with self._lock:
            if self._failed_since is not None and time.monotonic() < self._ask_again:
                raise self._unreachable("it did not answer a moment ago")
        return _Answering(self)

    def answered(self) -> None:
        """It did."""
        with self._lock:
            since, self._failed_since = self._failed_since, None
        if since is not None:
            _log.warning("the upstream %s answers again; it did not since %s", self.target, since)

    def failed(self, why: str) -> UnreachableError:
        """It did not; what to raise."""
        with self._lock:
            first = self._failed_since is None
            self._failed_since = self._failed_since or datetime.now(UTC)
            self._ask_again = time.monotonic() + self._retry_s
        if first:
            _log.warning("the upstream %s does not answer (%s): what is held here is served", self.target, why)
        return self._unreachable(why)

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"the upstream {self.target} of this mirror does not answer ({why[:300]})",
            metadata={"upstream": self.target},
            retry_after_s=self._retry_s,
        )


class _Answering:
    """Around a question: notes whether there was an answer."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnavailableError | DeadlineError):
            nobody = error.reason == "REGISTRY_UNREACHABLE"
            raise self._upstream.failed("nobody is there" if nobody else error.message) from error
        if error is None or isinstance(error, Exception):
            self._upstream.answered()
        if isinstance(error, UnauthenticatedError | ForbiddenError):
            raise UnavailableError(
                f"the upstream {self._upstream.target} does not take this mirror's token: give it one that may read "
                f"there, in {TOKEN_VARIABLE} ({error.message[:300]})",
                reason="UPSTREAM_REFUSES",
                metadata={"upstream": self._upstream.target},
            ) from error
