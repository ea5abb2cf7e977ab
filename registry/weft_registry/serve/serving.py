"""`weft registry serve`: the registry alone, over gRPC and HTTP, until it is told to stop. Needs no base model."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from weft.v1 import registry_pb2, registry_pb2_grpc
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnavailableError
from weft_registry.hub.port import HubPort
from weft_registry.messages import MAX_MESSAGE_BYTES
from weft_registry.serve.options import RegistryServeOptions
from weft_registry.serve.service import RegistryServicer
from weft_registry.status import ErrorInterceptor


@dataclass(frozen=True)
class RunningRegistry:
    """A registry that answers. Both addresses are HOST:PORT."""

    address: str
    http_address: str


def serve(options: RegistryServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Prints `http on HOST:PORT`, and `ready on HOST:PORT` once both ports answer. Raises `UnavailableError` for a port
    that is taken.
    """
    asyncio.run(_serve(options))


async def _serve(options: RegistryServeOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(options) as server:
        print(f"http on {server.http_address}\nready on {server.address}", flush=True)
        await stop.wait()


@asynccontextmanager
async def running(options: RegistryServeOptions) -> AsyncIterator[RunningRegistry]:
    """A registry that answers as long as the context lasts. Raises as `serve`."""
    async with AsyncExitStack() as stack:
        # What is entered last ends first.
        registry = EmbeddedRegistry(options.home)
        stack.callback(registry.close)
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                # Without this two servers share one port silently, and each gets half of the requests.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(registry), server)
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        service = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
        names = [service, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        address = _bind(server, options)
        hub = await asyncio.to_thread(HubPort, registry, options.host, options.http_port, grace_s=options.grace_s)
        stack.push_async_callback(asyncio.to_thread, hub.close)
        await server.start()
        stack.push_async_callback(server.stop, options.grace_s)
        stack.push_async_callback(health.enter_graceful_shutdown)
        for name in ("", *names):
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        yield RunningRegistry(address, hub.address)


def _bind(server: grpc.aio.Server, options: RegistryServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        port = server.add_insecure_port(f"{host}:{options.port}")
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {host}:{options.port}: is another server there? `--port 0` picks a free port ({error})",
            reason="CANNOT_LISTEN",
        ) from error
    if not _is_loopback(options.host):
        warning = (
            f"warning: {options.host} is reachable from other machines, and this registry asks nobody who they are"
        )
        print(warning, file=sys.stderr, flush=True)
    return f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
