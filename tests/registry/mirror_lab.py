"""An upstream for mirrors: a real registry in a server of its own, which can be stopped, and started again on the same
port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from weft_registry import transfer
from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.reference import AdapterName
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.service import RegistryServicer
from weft_registry.wire.messages import MAX_MESSAGE_BYTES
from weft_registry.wire.status import ErrorInterceptor

NAME = AdapterName("acme", "topics")


class CountingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Counts calls by method."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        self.calls[str(handler_call_details.method).rpartition("/")[2]] += 1
        return await continuation(handler_call_details)


class UpstreamServer:
    """A registry server that can be stopped and started again on the port that it had."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        self.counter = CountingInterceptor()
        self.port = 0
        self._registry = registry
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: grpc.aio.Server | None = None
        self._calls: RegistryServicer | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def calls(self) -> Counter[str]:
        return self.counter.calls

    def start(self) -> None:
        async def begin() -> None:
            self._server = grpc.aio.server(
                interceptors=[self.counter, ErrorInterceptor()],
                options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)],
            )
            self._calls = RegistryServicer(self._registry)
            add_registry_service(self._calls, self._server)
            self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
            await self._server.start()

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(30)

    def stop(self) -> None:
        async def end() -> None:
            if self._server is not None and self._calls is not None:
                self._calls.end_watches()
                await self._server.stop(0)
                self._server = None

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(30)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


def publish(origin: EmbeddedRegistry, directory: Path, **labels: list[str]) -> Version:
    return transfer.push(origin, directory, NAME, **labels).version


def eventually(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
