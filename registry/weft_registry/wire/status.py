"""The one table between our errors and gRPC statuses, in both directions, and the interceptor that applies it.

Every error carries google.rpc.ErrorInfo (domain "weft.dev"), and BadRequest, PreconditionFailure or RetryInfo where
there is something to say. Knows neither registry nor engine: both servers use it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from weft_registry import errors
from weft_registry.errors import Violation, WeftError
from weft_registry.wire.handlers import answering_with, behavior_of

DOMAIN = "weft.dev"
# An error travels in HTTP/2 trailers, of which a peer takes 8 KiB. The message is in there twice: as it is, and with
# every byte that is not plain ASCII written as three.
MAX_MESSAGE_BYTES = 1800
MAX_DETAILS_BYTES = 2800
_MAX_METADATA_BYTES = 1200

_CODES: dict[type[WeftError], grpc.StatusCode] = {
    errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.OffsetError: grpc.StatusCode.OUT_OF_RANGE,
    errors.CorruptionError: grpc.StatusCode.DATA_LOSS,
    errors.ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    WeftError: grpc.StatusCode.INTERNAL,
}
_CLASSES = {code: kind for kind, code in _CODES.items()}
_DETAILS_KEY = "grpc-status-details-bin"
_log = logging.getLogger(__name__)


def code_of(error: WeftError) -> grpc.StatusCode:
    """The gRPC status of an error; a subclass has that of its parent."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def to_rpc_status(error: WeftError) -> status_pb2.Status:
    """The google.rpc.Status of an error, short enough for a trailer: what does not fit is cut, and says so."""
    code = code_of(error)
    status = status_pb2.Status(code=code.value[0], message=_cut(error.message, MAX_MESSAGE_BYTES))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, _MAX_METADATA_BYTES // len(error.metadata))
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        subject = next(iter(error.metadata.values()), "")
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=error.reason, subject=_cut(subject, 100), description=_cut(error.message, 200))
        status.details.add().Pack(failure)
    if error.violations:
        room = MAX_DETAILS_BYTES - sum(detail.ByteSize() for detail in status.details)
        status.details.add().Pack(_bad_request(error.violations, room))
    return status


def from_rpc_error(error: grpc.RpcError) -> WeftError:
    """The error that a server answered, as its own class, with reason, metadata and violations.

    Reads sync and asyncio errors alike. A status that no `WeftError` has becomes a plain `WeftError` whose reason is
    the status's name.
    """
    call: Any = error
    code: grpc.StatusCode = call.code()
    kind = _CLASSES.get(code, WeftError)
    message = call.details() or code.name
    reason, metadata, retry_after_s = None, {}, None
    violations: list[Violation] = []
    for key, value in call.trailing_metadata() or ():
        if key != _DETAILS_KEY:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                violations = [Violation(v.field, v.description) for v in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if reason is None and kind is WeftError:
        reason = code.name
    return kind(message, reason=reason, metadata=metadata, violations=violations, retry_after_s=retry_after_s)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers a handler's `WeftError` with its status, and anything unexpected with INTERNAL and a log line."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # No such method: gRPC answers UNIMPLEMENTED itself.
            return handler
        method = str(handler_call_details.method)
        inner = behavior_of(handler)
        if inspect.isasyncgenfunction(inner):
            wrapped: Any = _wrap_stream(method, inner)
        elif inspect.iscoroutinefunction(inner):
            wrapped = _wrap(method, inner)
        else:  # A synchronous handler is not ours (reflection, health): it answers its own errors.
            return handler
        return answering_with(handler, wrapped)


def _wrap(method: str, inner: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def handle(request: Any, context: Any) -> Any:
        async with _answering(method, context):
            return await inner(request, context)

    return handle


def _wrap_stream(method: str, inner: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], Any]:
    async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        async with _answering(method, context):
            async for response in inner(request, context):
                yield response

    return handle


@asynccontextmanager
async def _answering(method: str, context: Any) -> AsyncIterator[None]:
    """Ends the call with the status of whatever error leaves the block."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except WeftError as error:
        await _abort(context, error)
    except Exception:  # noqa: BLE001
        # The one place where any exception may end: a server must outlive a bug in one call, and leave its traceback.
        _log.exception("%s failed unexpectedly", method)
        await _abort(context, WeftError(f"{method} failed unexpectedly: the server's log says why"))


async def _abort(context: Any, error: WeftError) -> None:
    status: Any = rpc_status.to_status(to_rpc_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def _bad_request(violations: tuple[Violation, ...], room_bytes: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        bad.field_violations.add(field=_cut(violation.field, 200), description=_cut(violation.description, 300))
        if bad.ByteSize() > room_bytes - 100:
            del bad.field_violations[-1]
            bad.field_violations.add(field="", description=f"and {len(violations) - index} more")
            break
    return bad


def _cut(text: str, most_bytes: int) -> str:
    """`text`, or as much of its beginning as takes `most_bytes` once it is percent-encoded."""
    # A file name that is no text may be in a message; protobuf takes only text.
    text = text.encode("utf-8", "backslashreplace").decode()
    size = 0
    for index, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > most_bytes:
            return text[:index] + "..."
    return text
