"""The embedded engine: one base model in memory, a thread that computes over it, and two that prepare adapters."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.binding import bind
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter
from weft_adapters.threads import step_aside
from weft_registry.errors import PreconditionError
from weft_registry.manifest import Manifest
from weft_server.engine import AdapterHandle, Artifact, Deliver, EngineInfo, EngineRequest, MergeOutcome
from weft_server.stats import EngineStats
from weft_server.torch_engine.decoder import TorchDecoder
from weft_server.torch_engine.decoders import Decoder
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.native.decoder import NativeDecoder
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.overlays import OverlayStore
from weft_server.torch_engine.scheduler import Limits
from weft_server.torch_engine.sequence import Sequence as EngineSequence
from weft_server.torch_engine.sequence import virtual_tokens
from weft_server.torch_engine.step_thread import StepThread
from weft_server.torch_engine.stepper import Stepper

_T = TypeVar("_T")


@dataclass(frozen=True)
class TorchEngineOptions:
    """How the engine uses the machine."""

    device: torch.device
    dtype: torch.dtype
    copies: bool
    """Keep a dense copy of the base beside the int4 one (CPU): faster batches for more memory."""
    max_batch_size: int
    max_prefill_tokens: int
    """Prompt tokens of a step in which somebody is answering; a longer prompt is computed in pieces."""
    max_waiting: int
    """Requests in the queue before new ones are refused."""
    kv_bytes: int
    overlay_bytes: int
    max_idle_prefill_tokens: int = 1024
    """Prompt tokens of a step in which nobody is answering, if that is more than `max_prefill_tokens`."""
    max_active_adapters: int = 64
    """Different adapters in one batch."""
    num_threads: int = 0
    """CPU threads of a step; 0 takes every core."""
    native: Path | None = None
    """The native decoder's library (CPU, bfloat16; see `native.choose`); None computes with torch."""


class TorchEngine:
    """Implements `weft_server.engine.Engine`."""

    def __init__(self, base: StoredBase, options: TorchEngineOptions) -> None:
        self._base = base
        self._options = options
        self._merging = threading.Lock()
        self._overlays = OverlayStore(options.overlay_bytes)
        # One core each at most, and no OpenMP team of their own: see `StepThread`.
        self._side = ThreadPoolExecutor(2, "weft-side", initializer=_beside_steps)
        self._steps = StepThread(self._build, num_threads=options.num_threads, max_waiting=options.max_waiting)

    def _build(self) -> Stepper:
        options = self._options
        decoder = self._decoder()
        self._base.release()
        limits = Limits(
            max_batch_size=options.max_batch_size,
            max_prefill_tokens=options.max_prefill_tokens,
            max_idle_prefill_tokens=options.max_idle_prefill_tokens,
            max_active_adapters=options.max_active_adapters,
        )
        return Stepper(decoder, limits, options.kv_bytes, options.device)

    def _decoder(self) -> Decoder:
        o = self._options
        if o.native is None:
            return TorchDecoder(self._base, KernelFactory(o.device, o.dtype, o.copies))
        decoder = NativeDecoder(self._base, o.native, o.num_threads or os.cpu_count() or 1)
        # Its own threads do the work; torch's would only take cores from them.
        torch.set_num_threads(1)
        return decoder

    @property
    def info(self) -> EngineInfo:
        """See `Engine`."""
        config = self._base.config
        return EngineInfo(
            name="torch",
            device=str(self._options.device),
            dtype=str(self._options.dtype).removeprefix("torch."),
            context_length=config.context_length,
            vocabulary_size=config.vocab_size,
            max_batch_size=self._options.max_batch_size,
            kinds=tuple(KINDS),
            mergeable_kinds=tuple(name for name, kind in KINDS.items() if kind.mergeable),
        )

    @property
    def alive(self) -> bool:
        """See `Engine`."""
        return self._steps.alive

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's weights in memory, copies included."""
        return self._stepper.decoder.size_bytes

    def start(self, deliver: Deliver) -> None:
        """See `Engine`."""
        self._steps.start(deliver)

    def close(self) -> None:
        """See `Engine`."""
        self._steps.close()
        self._side.shutdown()

    def bind(self, directory: Path, manifest: Manifest, digest: str, parts: Sequence[Artifact] = ()) -> Adapter[Any]:
        """See `Engine`."""
        o = self._options

        def read() -> Adapter[Any]:
            spec = self._base.spec
            over = [bind(p.directory, p.manifest, spec, dtype=o.dtype, device=o.device, digest=p.digest) for p in parts]
            adapter = bind(directory, manifest, spec, dtype=o.dtype, device=o.device, digest=digest, parts=over)
            prepared = adapter.kind.prepare(adapter, self._base)
            if prepared is not adapter:
                self._base.release()
            return self._stepper.decoder.adopt(prepared)

        return self._beside(read)

    def compose(self, parts: Sequence[tuple[AdapterHandle, float]], digest: str) -> Adapter[Any]:
        """See `Engine`."""
        bound = [(_bound(part), weight) for part, weight in parts]

        def make() -> Adapter[Any]:
            return self._stepper.decoder.adopt(bound[0][0].kind.compose(bound, digest))

        return self._beside(make)

    def release(self, adapter: AdapterHandle) -> None:
        """See `Engine`."""
        digest = adapter.digest
        self._overlays.drop(digest)
        self._steps.post(lambda: self._stepper.forget(digest))

    def context_room(self, adapter: AdapterHandle | None) -> int:
        """See `Engine`."""
        return self._base.config.context_length - virtual_tokens(None if adapter is None else _bound(adapter))

    def submit(self, request: EngineRequest) -> None:
        """See `Engine`."""
        sequence = EngineSequence(request, None if request.adapter is None else _bound(request.adapter))
        self._stepper.check(sequence)
        self._steps.submit(sequence)

    def cancel(self, request_id: str) -> None:
        """See `Engine`."""
        self._steps.post(request_id)

    def stats(self) -> EngineStats:
        """See `Engine`."""
        # What was submitted and not yet received waits too: a step may be long.
        return replace(self._stepper.stats(), waiting=self._steps.waiting_count)

    @property
    def merged(self) -> AdapterHandle | None:
        """See `Engine`."""
        overlay = self._overlays.in_force
        return overlay.adapter if overlay else None

    @property
    def overlay_bytes(self) -> int:
        """See `Engine`."""
        return self._overlays.size_bytes

    @property
    def overlays(self) -> Mapping[str, int]:
        """See `Engine`."""
        return self._overlays.hot

    def merge(self, adapter: AdapterHandle) -> MergeOutcome:
        """See `Engine`."""
        with self._merging:
            begin = time.perf_counter()
            bound = _bound(adapter)
            kept = self._overlays.find(bound.digest)
            overlay = kept or self._build_overlay(bound)
            build_s = 0.0 if kept else time.perf_counter() - begin
            switch_s, switch_steps = self._swap(overlay)
            return MergeOutcome(overlay.size_bytes, build_s, switch_s, switch_steps, hot=kept is not None)

    def unmerge(self) -> float:
        """See `Engine`."""
        with self._merging:
            if self._overlays.in_force is None:
                raise PreconditionError("no adapter is merged", reason="NOT_MERGED")
            return self._swap(None)[0]

    @property
    def _stepper(self) -> Stepper:
        return self._steps.stepper

    def _build_overlay(self, adapter: Adapter[Any]) -> Overlay:
        stepper, digest = self._stepper, adapter.digest
        try:
            overlay = self._beside(
                lambda: build_overlay(
                    self._base,
                    stepper.decoder,
                    adapter,
                    reserve=lambda size_bytes: self._overlays.reserve(digest, size_bytes),
                    busy=lambda: not stepper.scheduler.idle,
                )
            )
        finally:
            self._base.release()
        self._overlays.add(overlay)
        return overlay

    def _swap(self, overlay: Overlay | None) -> tuple[float, int]:
        """Seconds, and steps that began, from asking until the new weights are in force."""

        def assign() -> None:
            self._stepper.overlay = overlay

        begin = time.perf_counter()
        _, steps = self._steps.between_steps(assign)
        self._overlays.put_in_force(overlay)
        return time.perf_counter() - begin, steps

    def _beside(self, work: Callable[[], _T]) -> _T:
        """Does something slow in a side thread, and waits for it."""

        def inferring() -> _T:
            with torch.inference_mode():
                return work()

        return self._side.submit(inferring).result()


def _beside_steps() -> None:
    """How a side thread begins: on one core, and behind the steps."""
    torch.set_num_threads(1)
    step_aside()


def _bound(adapter: AdapterHandle) -> Adapter[Any]:
    assert isinstance(adapter, Adapter), "a handle of another engine"
    return adapter
