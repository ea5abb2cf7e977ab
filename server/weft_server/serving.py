"""`weft serve`: puts the parts together on one port, and takes them apart again in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from weft.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    registry_admin_pb2,
    registry_admin_pb2_grpc,
    registry_pb2,
)
from weft_adapters.base.load import StoredBase
from weft_adapters.threads import pass_the_lock_on
from weft_registry.api import RegistryApi
from weft_registry.base import BaseStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, WeftError
from weft_registry.hub.port import HubPort
from weft_registry.serve.admin_service import RegistryAdminServicer
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.ports import listen
from weft_registry.transfer import open_registry
from weft_registry.wire.status import ErrorInterceptor
from weft_server.admin_service import AdapterAdminServicer
from weft_server.bridge import EngineBridge
from weft_server.completion import Completer
from weft_server.disk_cache import DiskCache
from weft_server.engine import Engine
from weft_server.engines import engine_builder
from weft_server.free_ports import check_ports
from weft_server.identification import identification
from weft_server.inference_service import InferenceServicer
from weft_server.memory_plan import MemoryPlan, NotEnoughMemoryError
from weft_server.merge_control import MergeControl, merge_rule
from weft_server.metrics import ServerCollector
from weft_server.metrics_port import MetricsPort
from weft_server.options import ServeOptions
from weft_server.recorder import RequestRecorder
from weft_server.reload import AnnouncingRegistryServicer, Reloader
from weft_server.residency import Residency
from weft_server.resolution import Resolver
from weft_server.server_stats import Statistics
from weft_server.signature_gate import SignatureGate
from weft_server.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_CHANNEL_OPTIONS = [
    # Without this two servers share one port silently, and each gets half of the requests.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 * _MIB),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


def serve(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Prints `ready on HOST:PORT` once requests are welcome.

    Raises `NotFoundError` for a base that was not added, `UnavailableError` for a port that is taken, what
    building the engine raises (`weft_server.engines`), and for a reference to preload what `Residency.load` raises.
    """
    pass_the_lock_on()
    asyncio.run(_serve(options))


@dataclass(frozen=True)
class Running:
    """A server that answers, and its parts."""

    address: str
    engine: Engine
    bridge: EngineBridge
    residency: Residency
    reloader: Reloader
    plan: MemoryPlan
    metrics_address: str | None = None
    """HOST:PORT; None without `--metrics-port`."""
    http_address: str | None = None
    """HOST:PORT; None without `--http-port`."""


async def _serve(options: ServeOptions) -> None:
    async with running(options) as server:
        print(f"ready on {server.address}", flush=True)
        await _stop_signal()
        _say(f"stopping: {server.bridge.running_count} requests running, at most {options.grace_s:g} s for them")


@asynccontextmanager
async def running(options: ServeOptions) -> AsyncIterator[Running]:
    """A server that answers as long as the context lasts; then it drains, and ends. Raises as `serve`."""
    build = engine_builder(options.engine)
    store = BaseStore(options.home.bases)
    spec = store.get(options.base)
    base = StoredBase.open(store.path(options.base))
    rule, tokenizer = merge_rule(options), Tokenizer(base.tokenizer_dir)
    async with AsyncExitStack() as stack:
        # What is entered last ends first.
        registry = open_registry(options.home, options.registry)
        stack.callback(registry.close)
        _check_http(registry, options)
        check_ports(options)
        gate = SignatureGate(options.require_signature)
        identify = await asyncio.to_thread(identification, registry, options)
        stack.callback(identify.close)
        with _table_on_refusal():
            built = await asyncio.to_thread(build, options, base)
        engine, plan = built.engine, built.plan
        stack.push_async_callback(asyncio.to_thread, engine.close)
        _say(
            f"base {options.base} ({spec.fingerprint.id}): {engine.base_bytes / _MIB:.0f} MiB in {built.about}"
            f"\n{plan.table()}"
        )
        bridge = EngineBridge(engine)
        resolver = Resolver(registry, options.dtype, follow=options.reload_interval_s > 0)
        disk = await asyncio.to_thread(DiskCache, options.home.pulled, options.disk_bytes)
        residency = Residency(engine, resolver, disk, plan.adapter_bytes, gate=gate)
        stack.push_async_callback(residency.close)
        reloader = Reloader(resolver, residency, options.reload_interval_s)
        stack.push_async_callback(reloader.close)
        completer = Completer(bridge, residency, tokenizer, frozenset(base.config.eos_token_ids))
        merges = MergeControl(residency, engine, rule)
        requests = RequestRecorder()
        statistics = Statistics(engine, residency, requests, overlay_limit_bytes=plan.overlay_bytes)
        metrics_address = None
        if options.metrics_port is not None:
            collector = ServerCollector(statistics.ask, engine.info, options.base)
            metrics = await asyncio.to_thread(MetricsPort, collector, options.host, options.metrics_port)
            stack.push_async_callback(asyncio.to_thread, metrics.close)
            metrics_address = metrics.address
            _say(f"metrics on http://{metrics_address}/metrics")
        http_address = None
        if options.http_port is not None and isinstance(registry, EmbeddedRegistry):
            hub = await asyncio.to_thread(
                HubPort,
                registry,
                options.host,
                options.http_port,
                grace_s=options.grace_s,
                authenticator=identify.hub,
                tls=options.access.tls,
            )
            stack.push_async_callback(asyncio.to_thread, hub.close)
            http_address = hub.address
            _say(f"http on {http_address}")
        interceptors = [ErrorInterceptor(), *identify.interceptors]
        server = grpc.aio.server(interceptors=interceptors, options=_CHANNEL_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(completer, options.base, spec, engine.info, requests), server
        )
        inference_pb2_grpc.add_AdapterAdminServiceServicer_to_server(
            AdapterAdminServicer(residency, engine, plan.overlay_bytes, merges, statistics), server
        )
        # What would hold a stopping server up for as long as its clients like.
        ends: list[Callable[[], None]] = []
        services = [
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
            inference_pb2.DESCRIPTOR.services_by_name["AdapterAdminService"].full_name,
        ]
        if isinstance(registry, EmbeddedRegistry):
            calls = AnnouncingRegistryServicer(registry, reloader)
            add_registry_service(calls, server)
            ends.append(calls.end_watches)
            services.append(registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name)
            registry_admin_pb2_grpc.add_RegistryAdminServiceServicer_to_server(RegistryAdminServicer(registry), server)
            services.append(registry_admin_pb2.DESCRIPTOR.services_by_name["RegistryAdminService"].full_name)
        health_servicer = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        services.append(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)
        access = options.access
        address = listen(server, options.host, options.port, access.tls, authenticated=access.required)
        bridge.start()
        for reference in options.preload:
            await _preload(residency, reference)
        _settle()
        await server.start()
        stack.push_async_callback(server.stop, options.grace_s)
        for end in ends:
            stack.callback(end)
        stack.push_async_callback(health_servicer.enter_graceful_shutdown)
        await _set_health(health_servicer, services, serving=True)
        for watch in (_watch(engine, health_servicer, services), merges.run(), reloader.run()):
            stack.callback(asyncio.create_task(watch).cancel)
        yield Running(address, engine, bridge, residency, reloader, plan, metrics_address, http_address)


def _check_http(registry: RegistryApi, options: ServeOptions) -> None:
    if options.http_port is not None and not isinstance(registry, EmbeddedRegistry):
        raise InvalidInputError(
            "--http-port shows the embedded registry, and this server's is elsewhere: leave one of --http-port and "
            "--registry (or WEFT_REGISTRY) out, or start `weft registry serve` there"
        )


def _settle() -> None:
    """Spares what start-up made, which lives as long as the server, from later collections of garbage.

    One over all of it holds Python's lock for 0.1 s, and every running stream waits.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _table_on_refusal() -> Iterator[None]:
    try:
        yield
    except NotEnoughMemoryError as error:
        _say(error.plan.table())
        raise


async def _preload(residency: Residency, reference: str) -> None:
    try:
        resident = await residency.load(reference)
    except WeftError as error:
        error.begin(f"--preload {reference}: ")
        raise
    _say(f"loaded {reference} ({resident.kind}, {resident.size_bytes / _MIB:.1f} MiB, {resident.digest})")


async def _stop_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def _watch(engine: Engine, servicer: HealthServicer, services: list[str]) -> None:
    """Tells the health service when the engine has died."""
    while engine.alive:
        await asyncio.sleep(1.0)
    _log.error("the engine is not computing any more")
    await _set_health(servicer, services, serving=False)


async def _set_health(servicer: HealthServicer, services: list[str], *, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", *services):
        await servicer.set(service, status)


def _say(line: str) -> None:
    """For the person who started the server; standard output carries only the ready line."""
    print(line, file=sys.stderr, flush=True)
