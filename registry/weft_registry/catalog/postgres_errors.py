"""What PostgreSQL says, in words that callers understand. Codes: the manual's appendix A, "PostgreSQL Error Codes".

While a connection is being made the driver knows no code, and the text is all there is.
"""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError

from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    InvalidInputError,
    PreconditionError,
    UnavailableError,
)

_REFUSED = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
    "permission denied for database",
    "could not translate host name",
    "failed to resolve host",
    "server does not support SSL",
    "certificate",
)
_FULL = ("too many clients", "too many connections", "remaining connection slots")


def translated(error: DBAPIError, where: str) -> Exception:
    """What a caller should hear of `error`, or `error` itself where it is a bug of ours. `where` names the catalog."""
    said = " ".join(str(error.orig).split())
    state = _state(error)
    if state == "55P03":  # lock_not_available
        return UnavailableError(
            f"the catalog {where} cannot be used now ({said}): others write to it; try again",
            reason="CATALOG_BUSY",
            retry_after_s=1.0,
        )
    if state.startswith("53") or _says(said, state, _FULL):  # insufficient_resources: disk, memory, connections
        return ExhaustedError(
            f"the catalog {where} has run out of something ({said}): make room on the server, or come back later",
            reason="CATALOG_FULL",
            retry_after_s=5.0,
        )
    if state.startswith("XX"):  # internal_error: data_corrupted, index_corrupted
        return CorruptionError(
            f"the catalog {where} is damaged ({said}): restore it from a backup", reason="CATALOG_DAMAGED"
        )
    if state in ("42501", "25006"):  # insufficient_privilege, read_only_sql_transaction
        return PreconditionError(
            f"the catalog {where} cannot be written to ({said}): check the role's rights", reason="CATALOG_NOT_WRITABLE"
        )
    if state in ("28P01", "28000", "3D000") or _says(said, state, _REFUSED):
        return PreconditionError(
            f"the catalog {where} cannot be opened ({said}): check the host, the role, its password (PGPASSWORD) and "
            "the database",
            reason="CATALOG_NOT_OPEN",
        )
    # data_exception: too long for a column. A zero byte in a text is refused by the driver, which knows no code for it.
    if state.startswith("22") or isinstance(error, DataError):
        return InvalidInputError(f"the catalog cannot hold a value ({said})")
    if isinstance(error, OperationalError | InterfaceError) or state == "25P03":  # idle_in_transaction_session_timeout
        return UnavailableError(
            f"no answer from the catalog {where} ({said}): is PostgreSQL running? A change is made whole or not at "
            "all; try again",
            reason="CATALOG_UNREACHABLE",
            retry_after_s=2.0,
        )
    return error


def waited_for(error: DBAPIError) -> bool:
    """Whether a connection that could not be made is tried again: the server restarts, or others have all of them."""
    said = " ".join(str(error.orig).split())
    return not _says(said, _state(error), _REFUSED)


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _says(said: str, state: str, words: tuple[str, ...]) -> bool:
    """Whether the text of an error without a code has one of `words`."""
    return not state and any(word in said for word in words)
