"""What goes back over HTTP: statuses, headers and bodies, and errors in the words that Hub clients understand."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft_registry import errors
from weft_registry.errors import WeftError

MAX_MESSAGE = 1000
INVALID_CREDENTIALS = "Invalid credentials in Authorization header"
"""What `huggingface_hub` knows a wrong token by."""
_STATUS: Mapping[type[WeftError], int] = {
    errors.InvalidInputError: 400,
    errors.NotFoundError: 404,
    errors.AlreadyExistsError: 409,
    errors.ConflictError: 412,
    errors.PreconditionError: 422,
    errors.OffsetError: 416,
    errors.ExhaustedError: 503,
    errors.UnsupportedError: 501,
    errors.UnavailableError: 503,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    WeftError: 500,
}
_STATUS_OF_REASON: Mapping[str, int] = {
    "BLOB_NOT_FOUND": 500,  # The version is there, so this is damage and no wrong request.
    "BODY_TOO_SLOW": 408,
    "BODY_TOO_LARGE": 413,
    "BLOB_TOO_LARGE": 413,
    "QUOTA_EXCEEDED": 413,
    "MEDIA_TYPE": 415,
}
# `huggingface_hub` raises RepositoryNotFoundError, RevisionNotFoundError and EntryNotFoundError by these words.
_HUB_CODES: Mapping[str, str] = {
    "ADAPTER_NOT_FOUND": "RepoNotFound",
    "VERSION_NOT_FOUND": "RevisionNotFound",
    "YANKED": "RevisionNotFound",
    "FILE_NOT_FOUND": "EntryNotFound",
}


@dataclass(frozen=True)
class Answer:
    """One answer. `Content-Length` is among the headers where the body is a stream."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | AsyncGenerator[bytes, None] = b""


def json_answer(document: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Answer:
    """A document."""
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(document).encode())


def error_answer(
    error: WeftError, headers: Mapping[str, str] | None = None, document: Mapping[str, Any] | None = None
) -> Answer:
    """An error with its status, and with the headers that Hub clients tell errors apart by; `document` joins it."""
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    status = _STATUS_OF_REASON.get(error.reason, status)
    extra = dict(headers or {})
    if status == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="weft"'
    if error.reason.startswith("TOKEN_"):
        # Other words would be taken for a repository that is not there. What is wrong with the token is in the body.
        return json_answer({"error": _shown(error.message)}, {**extra, "X-Error-Message": INVALID_CREDENTIALS}, status)
    if error.reason in _HUB_CODES:
        extra["X-Error-Code"] = _HUB_CODES[error.reason]
    if error.retry_after_s is not None:
        extra["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return refusal(status, error.message, extra, document)


def refusal(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    document: Mapping[str, Any] | None = None,
) -> Answer:
    """An answer that says no, and why: `X-Error-Message` is what clients show to people."""
    shown = _shown(message)
    return json_answer({"error": shown, **(document or {})}, {"X-Error-Message": shown, **(headers or {})}, status)


def _shown(message: str) -> str:
    """A header takes one line of plain ASCII."""
    text = " ".join(message.split()).encode("ascii", "replace").decode()
    return "".join(character if character.isprintable() else "?" for character in text)[:MAX_MESSAGE]
