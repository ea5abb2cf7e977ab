"""Who a caller is, by what another registry says of its token: for a server whose registry is elsewhere.

An answer is believed for `KEPT_S`: so long may a token that was revoked there still be taken for valid here.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import grpc

from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry.api import Identity
from weft_registry.errors import PreconditionError, UnauthenticatedError, UnsupportedError, WeftError
from weft_registry.principal import LOCAL, NOBODY, Principal, Scope
from weft_registry.remote.registry import answered_by
from weft_registry.wire.channel import open_channel
from weft_registry.wire.messages import identity_from

KEPT_S = 60.0
TIMEOUT_S = 10.0
_MAX_KEPT = 4096
_OPTIONS = [("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True)
class _Answer:
    principal: Principal
    asked_s: float


class RemoteAuthenticator:
    """Asks the registry at `target` with the callers' own tokens. Owns a channel and what it was answered; thread-safe.

    Does for a registry elsewhere what `weft_registry.access.authenticator.Authenticator` does for one in this process.
    """

    def __init__(self, target: str, clock: Callable[[], float] = time.monotonic, *, must_ask: bool = False) -> None:
        """With `must_ask`, a registry that asks nobody counts as one that cannot say who a caller is."""
        self._target, self._clock, self._must_ask = target, clock, must_ask
        self._channel = open_channel(target, _OPTIONS)
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._lock = threading.Lock()
        self._looking = False

    def principal(self, authorization: str | None) -> Principal:
        """Who says `authorization`; `LOCAL` where that registry asks nobody, `NOBODY` without a token where it does.

        Raises `UnauthenticatedError` as that registry does, and `UnavailableError` or `DeadlineError` where it gives no
        answer and gave none lately. That it asks nobody is believed until it says otherwise.
        """
        key = hashlib.sha256((authorization or "").encode()).digest()
        with self._lock:
            known = self._answers.get(key)
            fresh = known is not None and self._clock() - known.asked_s < KEPT_S
            if known is not None and known.principal is LOCAL and not fresh and not self._looking:
                # Nobody waits for a registry that hangs: what was open stays open until it says otherwise.
                self._looking = True
                threading.Thread(target=self._look_again, args=(key, authorization), daemon=True).start()
        if known is not None and (known.principal is LOCAL or (fresh and _valid(known.principal))):
            return known.principal
        return self._learn(key, authorization)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _learn(self, key: bytes, authorization: str | None) -> Principal:
        try:
            principal = self._ask(authorization)
        except UnauthenticatedError:
            self._forget(key)
            if authorization:
                raise
            principal = NOBODY
        with self._lock:
            self._answers[key] = _Answer(principal, self._clock())
            self._answers.move_to_end(key)
            while len(self._answers) > _MAX_KEPT:
                self._answers.popitem(last=False)
        return principal

    def _look_again(self, key: bytes, authorization: str | None) -> None:
        try:
            self._learn(key, authorization)
        except UnauthenticatedError:
            pass  # Forgotten: the next call hears it.
        except WeftError:
            with self._lock:
                if (known := self._answers.get(key)) is not None:
                    self._answers[key] = _Answer(known.principal, self._clock())
        finally:
            self._looking = False

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._answers.pop(key, None)

    def _ask(self, authorization: str | None) -> Principal:
        metadata = (("authorization", authorization),) if authorization else ()
        try:
            answer = self._stub.WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            known = answered_by(self._target, error)
            # A registry from before there were tokens.
            if not isinstance(known, UnsupportedError):
                raise known from error
            principal = LOCAL
        else:
            principal = _principal(identity_from(answer))
        if principal is LOCAL and self._must_ask:
            raise PreconditionError(
                f"the registry at {self._target} asks nobody who they are: start it with --auth", reason="NO_IDENTITIES"
            )
        return principal


def _valid(principal: Principal) -> bool:
    return principal.expires_at is None or principal.expires_at.timestamp() > time.time()


def asks_for_tokens(target: str) -> bool | None:
    """Whether the registry at `target` asks callers who they are; None if it gives no answer now."""
    with closing(RemoteAuthenticator(target)) as authenticator:
        try:
            return authenticator.principal(None) is not LOCAL
        except WeftError:
            return None


def _principal(identity: Identity) -> Principal:
    if identity.name == LOCAL.name:
        return LOCAL
    known = {scope.value for scope in Scope}
    # A newer registry may have scopes that mean nothing here.
    scopes = frozenset(Scope(scope) for scope in identity.scopes if scope in known)
    return Principal(identity.name, scopes, identity.namespaces, identity.expires_at)
