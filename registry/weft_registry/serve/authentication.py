"""Who a gRPC call comes from: its `authorization` metadata, turned into a principal before the call is handled.

Applies to Weft's own services; health and reflection answer everybody. Handlers ask `caller()`; what the caller may do
is checked by the registry.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import unquote

import grpc

from weft_registry.access.authenticator import Authenticator
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnauthenticatedError, UnsupportedError, WeftError
from weft_registry.principal import LOCAL, NOBODY, Principal
from weft_registry.wire.handlers import answering_with, behavior_of

_CALLER: ContextVar[Principal | WeftError] = ContextVar("weft_caller", default=LOCAL)
_OURS = "/weft.v1."
RECHECK_S = 10.0
"""How long a stream goes on sending before its token is looked at again."""


class Identities(Protocol):
    """Tells callers by their `authorization`: `Authenticator`, or `RemoteAuthenticator` for a registry elsewhere."""

    def principal(self, authorization: str | None) -> Principal:
        """Who says this. Raises `UnauthenticatedError`."""
        ...


def caller() -> Principal:
    """Who the call that is being handled comes from; `LOCAL` on a server that asks nobody.

    Raises what the registry raised that should say it, and does not answer.
    """
    known = _CALLER.get()
    if isinstance(known, WeftError):
        raise known
    return known


def as_caller(registry: EmbeddedRegistry) -> EmbeddedRegistry:
    """The registry as the caller may use it."""
    principal = caller()
    return registry if principal is LOCAL else registry.acting_as(principal)


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls whose token is not valid, and calls without one where there is nothing for nobody in particular.

    Goes behind `weft_registry.wire.status.ErrorInterceptor`, which turns its `UnauthenticatedError` into the status.
    """

    def __init__(self, authenticator: Identities, registry: EmbeddedRegistry | None, *, required: bool = True) -> None:
        """Refused tokens are written into the audit log of `registry`, if there is one. Where tokens are not
        `required`, calls of nobody in particular are handled, too, and handlers refuse what is not for everybody."""
        self._authenticator, self._registry, self._required = authenticator, registry, required

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(_OURS):
            return handler
        inner = behavior_of(handler)
        if inspect.isasyncgenfunction(inner):
            wrapped: Any = self._stream(method, inner)
        elif inspect.iscoroutinefunction(inner):
            wrapped = self._single(method, inner)
        else:  # What grpc's generated class answers for a method that this server does not have.
            wrapped = self._single(method, _absent(method))
        return answering_with(handler, wrapped)

    def _single(self, method: str, inner: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def handle(request: Any, context: Any) -> Any:
            await self._enter(method, context)
            return await inner(request, context)

        return handle

    def _stream(self, method: str, inner: Callable[[Any, Any], AsyncGenerator[Any]]) -> Callable[[Any, Any], Any]:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._enter(method, context)
            checked_s = time.monotonic()
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    # A stream may last for days: it does not outlive the token by much.
                    if time.monotonic() - checked_s >= RECHECK_S:
                        await self._check_again(context)
                        checked_s = time.monotonic()
                    yield response

        return handle

    async def _enter(self, method: str, context: Any) -> None:
        """Every call is a task of its own: what is set here holds for this one."""
        peer = peer_of(context)
        try:
            principal = await self._principal(context)
            if not principal.scopes and self._required:
                raise UnauthenticatedError(
                    "this registry asks who you are: `weft login`, or WEFT_TOKEN", reason="TOKEN_MISSING"
                )
        except UnauthenticatedError:
            if self._registry is not None:
                self._registry.acting_as(replace(NOBODY, peer=peer)).note_denied("token", method.rpartition("/")[2])
            raise
        except WeftError as error:
            if self._required:
                raise
            # For what everybody may do, it does not matter who it is.
            _CALLER.set(error)
            return
        _CALLER.set(principal if principal is LOCAL else replace(principal, peer=peer))

    async def _check_again(self, context: Any) -> None:
        try:
            await self._principal(context)
        except UnauthenticatedError:
            raise
        except WeftError:
            return  # Nobody can say just now: what was begun goes on.

    async def _principal(self, context: Any) -> Principal:
        said = _authorization_of(context)
        if said is None and isinstance(self._authenticator, Authenticator):
            return self._authenticator.anonymous  # Known without asking the catalog.
        return await asyncio.to_thread(self._authenticator.principal, said)


def _absent(method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def handle(request: Any, context: Any) -> Any:
        raise UnsupportedError(f"{method} is not a method of this server")

    return handle


def peer_of(context: Any) -> str:
    """Where a call comes from, without the port, with the name of its client certificate if it showed one."""
    kind, _, rest = unquote(context.peer()).partition(":")
    address = rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind
    names = context.auth_context().get("x509_common_name") or ()
    name = b"".join(names).decode(errors="replace")[:128]
    return f"{name} ({address})" if name else address


def _authorization_of(context: Any) -> str | None:
    said = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(said) > 1:
        raise UnauthenticatedError("authorization: said more than once", reason="TOKEN_INVALID")
    return str(said[0]) if said else None
