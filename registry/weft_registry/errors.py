"""The errors that Weft answers, one class per gRPC status that means something different to a caller.

A message says what is wrong, which thing it is about, and the way out. `reason` is a stable, upper-case word for
programs; `metadata` holds the values that the message names. `weft_registry.wire.status` maps them to gRPC and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One offending field of a request or of an artifact."""

    field: str
    description: str


class WeftError(Exception):
    """The base of every error a caller may see."""

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    def begin(self, text: str) -> None:
        """Puts `text` before the message: what whoever raised it knew nothing of, such as which of several things it is
        about."""
        self.message = text + self.message
        self.args = (self.message,)


class InvalidInputError(WeftError):
    """The caller's input is wrong whatever the state of the system (INVALID_ARGUMENT)."""

    default_reason = "INVALID_INPUT"


class NotFoundError(WeftError):
    """What was named is not there (NOT_FOUND)."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(WeftError):
    """What was to be created is there already, with other content (ALREADY_EXISTS)."""

    default_reason = "ALREADY_EXISTS"


class PreconditionError(WeftError):
    """The system is not in the state that the call needs (FAILED_PRECONDITION)."""

    default_reason = "FAILED_PRECONDITION"


class ConflictError(WeftError):
    """Somebody else changed it meanwhile: read again and retry (ABORTED)."""

    default_reason = "CONFLICT"


class OffsetError(WeftError):
    """A position past what there is, or not where the next byte belongs (OUT_OF_RANGE)."""

    default_reason = "OFFSET_OUT_OF_RANGE"


class CorruptionError(WeftError):
    """Stored or sent bytes do not have the digest they were promised to have (DATA_LOSS)."""

    default_reason = "CORRUPT"


class ExhaustedError(WeftError):
    """A limit is reached; `retry_after_s` says when to come back, if waiting helps (RESOURCE_EXHAUSTED)."""

    default_reason = "EXHAUSTED"


class UnsupportedError(WeftError):
    """A valid request that this installation or engine cannot serve (UNIMPLEMENTED)."""

    default_reason = "UNSUPPORTED"


class UnavailableError(WeftError):
    """The other side is draining, starting or unreachable (UNAVAILABLE)."""

    default_reason = "UNAVAILABLE"


class DeadlineError(WeftError):
    """The caller's deadline passed (DEADLINE_EXCEEDED)."""

    default_reason = "DEADLINE_EXCEEDED"


class UnauthenticatedError(WeftError):
    """Nobody says who is asking, or the token is unknown, expired or revoked (UNAUTHENTICATED)."""

    default_reason = "UNAUTHENTICATED"


class ForbiddenError(WeftError):
    """Who is asking may not do this (PERMISSION_DENIED)."""

    default_reason = "PERMISSION_DENIED"
