"""The part of the remote registry that is about aliases. A watch goes on by itself after every break, where it was."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self, TypeVar

import grpc

from weft.v1 import registry_pb2 as pb
from weft_registry.api import Alias, AliasMove, AliasNews
from weft_registry.errors import DeadlineError, UnavailableError
from weft_registry.reference import AdapterName
from weft_registry.watching import HEARTBEAT_S
from weft_registry.wire.alias_messages import alias_from, move_from, news_from

SILENCE_S = 3 * HEARTBEAT_S
"""A registry that has not said anything for so long is not there any more, whatever the connection looks like."""
PATIENCE_S = 60.0
"""How long a watch tries to reach the registry again before it says so."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 2.0
_PAGE = 1000

T = TypeVar("T")


class RemoteAliases:
    """What `weft_registry.remote.registry.RemoteRegistry` does with aliases. Owns nothing."""

    _stub: Any
    _timeout_s: float

    def set_alias(self, adapter: AdapterName, alias: str, target: str, expected_etag: str = "") -> Alias:
        """See `RegistryApi.set_alias`."""
        request = pb.SetAliasRequest(adapter=str(adapter), alias=alias, target=target, expected_etag=expected_etag)
        # A compare-and-swap whose answer was lost would see its own move as somebody else's: it is not repeated.
        attempt = self._once if expected_etag else self._retried
        return alias_from(attempt(lambda: self._stub.SetAlias(request, timeout=self._timeout_s)).alias)

    def delete_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "") -> str:
        """See `RegistryApi.delete_alias`. Not repeated: one whose answer was lost would find nothing to remove."""
        request = pb.DeleteAliasRequest(adapter=str(adapter), alias=alias, expected_etag=expected_etag)
        answer = self._once(lambda: self._stub.DeleteAlias(request, timeout=self._timeout_s))
        return str(answer.version_digest)

    def rollback_alias(self, adapter: AdapterName, alias: str, expected_etag: str = "", steps: int = 1) -> Alias:
        """See `RegistryApi.rollback_alias`. Not repeated: one whose answer was lost would be taken back."""
        request = pb.RollbackAliasRequest(adapter=str(adapter), alias=alias, expected_etag=expected_etag, steps=steps)
        return alias_from(self._once(lambda: self._stub.RollbackAlias(request, timeout=self._timeout_s)).alias)

    def list_alias_moves(self, adapter: AdapterName, alias: str = "", limit: int = 100) -> list[AliasMove]:
        """See `RegistryApi.list_alias_moves`. Reads as many pages as it takes."""
        request = pb.ListAliasMovesRequest(adapter=str(adapter), alias=alias)
        found: list[AliasMove] = []
        while len(found) < limit:
            request.page_size = min(_PAGE, limit - len(found))
            answer = self._retried(lambda: self._stub.ListAliasMoves(request, timeout=self._timeout_s))
            found += [move_from(move) for move in answer.moves]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found

    def watch_aliases(
        self, adapters: Sequence[AdapterName] = (), after: int = 0, patience_s: float = PATIENCE_S
    ) -> RemoteAliasWatch:
        """See `RegistryApi.watch_aliases`. Raises `UnavailableError` where the registry is away for longer than
        `patience_s`; the watch can be read on afterwards."""
        return RemoteAliasWatch(self._stub, self._errors, adapters, after, patience_s)

    def _retried(self, call: Callable[[], T]) -> T:
        raise NotImplementedError

    def _once(self, call: Callable[[], T]) -> T:
        with self._errors():
            return call()

    def _errors(self) -> AbstractContextManager[None]:
        raise NotImplementedError


class RemoteAliasWatch:
    """Follows a registry over gRPC. Implements `weft_registry.api.AliasWatch`; one thread reads it."""

    def __init__(
        self,
        stub: Any,
        errors: Callable[[], AbstractContextManager[None]],
        adapters: Sequence[AdapterName],
        after: int,
        patience_s: float,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._stub, self._errors, self._patience_s, self._silence_s = stub, errors, patience_s, silence_s
        self._names, self._after = [str(adapter) for adapter in adapters], after
        self._call: Any = None
        self._closed = threading.Event()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AliasNews:
        """See `AliasWatch.__next__`. Raises what the registry answers, which is `OffsetError` for a sequence that it
        has not come to."""
        until, delay_s = time.monotonic() + self._patience_s, _FIRST_DELAY_S
        while not self._closed.is_set():
            try:
                news = self._read()
            except (UnavailableError, DeadlineError):
                self._call = None
                if time.monotonic() + delay_s > until:
                    raise
                self._closed.wait(delay_s * random.uniform(0.75, 1.25))
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
                continue
            if news is not None:
                # From the first answer on there is a place to go on from.
                self._after = news.sequence
                return news
            self._closed.wait(_FIRST_DELAY_S)
        self.close()
        raise StopIteration

    def close(self) -> None:
        """See `AliasWatch.close`."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    def _read(self) -> AliasNews | None:
        """The next news; None where the registry ended the stream, and a new one goes on where it ended."""
        if self._call is None:
            try:
                self._call = self._stub.WatchAliases(pb.WatchAliasesRequest(adapters=self._names, after=self._after))
            except ValueError:  # gRPC's answer to a call on a channel that was closed.
                self._closed.set()
                return None
        silent = threading.Event()

        def give_up() -> None:
            silent.set()
            self._call.cancel()

        # A thread for each piece of news, which come at the pace of people and of heartbeats.
        guard = threading.Timer(self._silence_s, give_up)
        guard.daemon = True
        guard.start()
        try:
            return news_from(next(self._call))
        except StopIteration:
            self._call = None
            return None
        except grpc.RpcError as error:
            self._call = None
            if silent.is_set():
                raise UnavailableError(
                    f"the registry has said nothing for {self._silence_s:g} s: it is not there any more",
                    reason="REGISTRY_UNREACHABLE",
                ) from None
            if error.code() == grpc.StatusCode.CANCELLED:
                self._closed.set()  # By `close`, or with the channel.
                return None
            with self._errors():
                raise
        finally:
            guard.cancel()
