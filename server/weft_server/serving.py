"""`weft serve`: puts the parts together on one port, and takes them apart again in order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from weft.v1 import inference_pb2, inference_pb2_grpc, registry_pb2, registry_pb2_grpc
from weft_adapters.base.load import StoredBase
from weft_registry.base import BaseStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnavailableError, UnsupportedError
from weft_registry.service import RegistryServicer
from weft_registry.status import ErrorInterceptor
from weft_registry.transfer import open_registry
from weft_server.admin_service import AdapterAdminServicer
from weft_server.bridge import EngineBridge
from weft_server.completion import Completer
from weft_server.inference_service import InferenceServicer
from weft_server.machine import engine_options
from weft_server.options import ServeOptions
from weft_server.residency import Residency
from weft_server.tokenizer import Tokenizer
from weft_server.torch_engine.engine import TorchEngine

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

    Raises `NotFoundError` for a base that was not added, `UnavailableError` for a port that is taken, and what
    `engine_options` raises.
    """
    asyncio.run(_serve(options))


async def _serve(options: ServeOptions) -> None:
    if options.engine != "torch":
        raise UnsupportedError(f"--engine {options.engine}: this Weft has the engine torch")
    store = BaseStore(options.home.bases)
    spec = store.get(options.base)
    settings = engine_options(options, spec)
    base = StoredBase.open(store.path(options.base))
    base.verify()
    engine = TorchEngine(base, settings)
    registry = open_registry(options.home, options.registry)
    _say(
        f"base {options.base} ({spec.fingerprint.id}): {engine.base_bytes / _MIB:.0f} MiB in {options.dtype} on "
        f"{settings.device}, {settings.num_threads} threads"
        + (", bfloat16 copies beside int4" if settings.copies else "")
    )
    bridge = EngineBridge(engine)
    residency = Residency(engine, registry, options.home.pulled, options.adapter_bytes)
    completer = Completer(bridge, residency, Tokenizer(base.tokenizer_dir), frozenset(base.config.eos_token_ids))
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=_CHANNEL_OPTIONS)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(
        InferenceServicer(completer, options.base, spec, engine.info), server
    )
    inference_pb2_grpc.add_AdapterAdminServiceServicer_to_server(
        AdapterAdminServicer(residency, engine, options.overlay_bytes), server
    )
    services = [
        inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
        inference_pb2.DESCRIPTOR.services_by_name["AdapterAdminService"].full_name,
    ]
    if isinstance(registry, EmbeddedRegistry):
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(registry), server)
        services.append(registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name)
    health_servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    services.append(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)
    address = _bind(server, options)
    bridge.start()
    await server.start()
    await _set_health(health_servicer, services, serving=True)
    print(f"ready on {address}", flush=True)
    watcher = asyncio.create_task(_watch(engine, health_servicer, services))
    try:
        await _stop_signal()
        _say(f"stopping: {bridge.running_count} requests running, at most {options.grace_s:g} s for them")
    finally:
        watcher.cancel()
        await health_servicer.enter_graceful_shutdown()
        await server.stop(options.grace_s)
        await residency.close()
        await asyncio.to_thread(engine.close)
        registry.close()


def _bind(server: grpc.aio.Server, options: ServeOptions) -> str:
    wanted = f"[{options.host}]:{options.port}" if ":" in options.host else f"{options.host}:{options.port}"
    try:
        port = server.add_insecure_port(wanted)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {wanted}: is another server there? `--port 0` picks a free port ({error})",
            reason="CANNOT_LISTEN",
        ) from error
    if not _is_loopback(options.host):
        _say(f"warning: {options.host} is reachable from other machines, and this server asks nobody who they are")
    return f"{wanted.rpartition(':')[0]}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _stop_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def _watch(engine: TorchEngine, servicer: HealthServicer, services: list[str]) -> None:
    """Tells the health service when the step thread has died."""
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
