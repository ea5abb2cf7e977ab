"""`weft registry serve`: the registry alone, over gRPC and HTTP, until it is told to stop. Needs no base model."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from weft.v1 import registry_admin_pb2, registry_admin_pb2_grpc, registry_pb2
from weft_registry.allocator import keep_freed_chunks
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError
from weft_registry.hub.port import HubPort
from weft_registry.mirror.follower import Follower
from weft_registry.mirror.registry import MirrorRegistry
from weft_registry.mirror.upstream import Upstream
from weft_registry.serve.admin_service import RegistryAdminServicer
from weft_registry.serve.authentication import AuthenticationInterceptor
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.options import RegistryServeOptions
from weft_registry.serve.ports import listen
from weft_registry.serve.service import RegistryServicer
from weft_registry.serve.staleness import StalenessInterceptor
from weft_registry.storage import Storage
from weft_registry.wire.messages import MAX_MESSAGE_BYTES
from weft_registry.wire.status import ErrorInterceptor

UPSTREAM_HEALTH = "weft.upstream"
"""What the health service calls the upstream of a mirror."""
_WATCH_S = 0.5


@dataclass(frozen=True)
class RunningRegistry:
    """A registry that answers. Both addresses are HOST:PORT."""

    address: str
    http_address: str
    catalog: str
    """Where it is, without a password."""
    blobs: str
    """Where they are."""


def serve(options: RegistryServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Prints `http on HOST:PORT`, and `ready on HOST:PORT` once both ports answer; where catalog and blobs are goes to
    stderr. Raises `UnavailableError` for a port that is taken and for storage that cannot be reached, and as
    `EmbeddedRegistry` does.
    """
    keep_freed_chunks()
    asyncio.run(_serve(options))


async def _serve(options: RegistryServeOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(options) as server:
        print(f"catalog in {server.catalog}\nblobs in {server.blobs}", file=sys.stderr, flush=True)
        print(f"http on {server.http_address}\nready on {server.address}", flush=True)
        await stop.wait()


@asynccontextmanager
async def running(options: RegistryServeOptions) -> AsyncIterator[RunningRegistry]:
    """A registry that answers as long as the context lasts. Raises as `serve`."""
    async with AsyncExitStack() as stack:
        # What is entered last ends first.
        storage = Storage.from_environment(options.database, options.blobs)
        registry = await asyncio.to_thread(_open, options, storage)
        stack.callback(registry.close)
        if isinstance(registry, MirrorRegistry):
            bound = options.max_held_bytes
            holding = "" if bound is None else f", holding at most {bound} bytes"
            print(f"mirror of {registry.upstream.target}{holding}", file=sys.stderr, flush=True)
            stack.push_async_callback(asyncio.to_thread, Follower(registry).close)
        await asyncio.to_thread(registry.blobs.check_access)
        authenticator = registry.authenticator(options.access.anonymous)
        server = grpc.aio.server(
            interceptors=[
                StalenessInterceptor(),
                ErrorInterceptor(),
                AuthenticationInterceptor(authenticator, registry),
            ],
            options=[
                # Without this two servers share one port silently, and each gets half of the requests.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        calls = RegistryServicer(registry)
        add_registry_service(calls, server)
        registry_admin_pb2_grpc.add_RegistryAdminServiceServicer_to_server(RegistryAdminServicer(registry), server)
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        names = [
            registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name,
            registry_admin_pb2.DESCRIPTOR.services_by_name["RegistryAdminService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        ]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        access = options.access
        address = listen(server, options.host, options.port, access.tls, authenticated=access.required)
        hub = await asyncio.to_thread(
            HubPort,
            registry,
            options.host,
            options.http_port,
            grace_s=options.grace_s,
            authenticator=authenticator,
            tls=access.tls,
        )
        stack.push_async_callback(asyncio.to_thread, hub.close)
        await server.start()
        stack.push_async_callback(server.stop, options.grace_s)
        # Or stopping would wait for them to end by themselves.
        stack.callback(calls.end_watches)
        stack.push_async_callback(health.enter_graceful_shutdown)
        for name in ("", *names):
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if isinstance(registry, MirrorRegistry):
            stack.callback(asyncio.create_task(_watch_upstream(registry.upstream, health)).cancel)
        yield RunningRegistry(address, hub.address, *registry.where)


def _open(options: RegistryServeOptions, storage: Storage) -> EmbeddedRegistry:
    if options.upstream is None:
        if options.max_held_bytes is not None:
            raise InvalidInputError("max_held_bytes: only a mirror can bring again what goes: name its upstream, too")
        return EmbeddedRegistry(options.home, None, storage)
    return MirrorRegistry(options.home, Upstream(options.upstream), None, storage, options.max_held_bytes)


async def _watch_upstream(upstream: Upstream, health: HealthServicer) -> None:
    """Says under a name of its own whether the upstream answers: a mirror is serving in any case."""
    states = health_pb2.HealthCheckResponse
    while True:
        answers = upstream.failed_since is None
        await health.set(UPSTREAM_HEALTH, states.SERVING if answers else states.NOT_SERVING)
        await asyncio.sleep(_WATCH_S)
