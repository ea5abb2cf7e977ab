"""The embedded engine: one base model in memory, a thread that computes over it, and two that prepare adapters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.binding import bind
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter
from weft_registry.errors import ExhaustedError, PreconditionError
from weft_registry.manifest import Manifest
from weft_server.engine import AdapterHandle, Deliver, EngineInfo, EngineRequest, MergeOutcome
from weft_server.torch_engine.decoder import Decoder
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.kv_cache import CacheShape, KvCache
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Scheduler
from weft_server.torch_engine.sequence import Sequence
from weft_server.torch_engine.step_thread import StepThread
from weft_server.torch_engine.stepper import Stepper

_T = TypeVar("_T")


@dataclass(frozen=True)
class TorchEngineOptions:
    """How the engine uses the machine."""

    device: torch.device
    dtype: torch.dtype
    copies: bool
    """Keep a packed bfloat16 copy of the base beside the int4 one (CPU): faster batches for more memory."""
    max_batch_size: int
    max_prefill_tokens: int
    """Prompt tokens of one step, beyond the first prompt."""
    max_waiting: int
    """Requests in the queue before new ones are refused."""
    kv_bytes: int
    overlay_bytes: int
    num_threads: int = 0
    """CPU threads of a step; 0 leaves the choice to torch."""


class TorchEngine:
    """Implements `weft_server.engine.Engine`."""

    def __init__(self, base: StoredBase, options: TorchEngineOptions) -> None:
        self._base = base
        self._options = options
        config = base.config
        shape = CacheShape(config.num_layers, config.num_kv_heads, config.head_dim, options.dtype, options.device)
        self._cache: KvCache[Sequence] = KvCache(shape, options.kv_bytes)
        self._merging = threading.Lock()
        # One core each at most, and no OpenMP team of their own: see `StepThread`.
        self._side = ThreadPoolExecutor(2, "weft-side", initializer=torch.set_num_threads, initargs=(1,))
        self._steps = StepThread(self._build, num_threads=options.num_threads, max_waiting=options.max_waiting)

    def _build(self) -> Stepper:
        options = self._options
        decoder = Decoder(self._base, KernelFactory(options.device, options.dtype, options.copies))
        self._base.release()
        scheduler = Scheduler(
            self._cache, max_batch_size=options.max_batch_size, max_prefill_tokens=options.max_prefill_tokens
        )
        return Stepper(decoder, scheduler, options.device)

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

    def bind(self, directory: Path, manifest: Manifest, digest: str) -> Adapter[Any]:
        """See `Engine`."""
        o = self._options
        return self._beside(
            lambda: bind(directory, manifest, self._base.spec, dtype=o.dtype, device=o.device, digest=digest)
        )

    def release(self, adapter: AdapterHandle) -> None:
        """See `Engine`."""
        digest = adapter.digest
        self._steps.post(lambda: self._stepper.active.forget(digest))

    def context_room(self, adapter: AdapterHandle | None) -> int:
        """See `Engine`."""
        prefix = None
        if adapter is not None:
            bound = _bound(adapter)
            prefix = bound.kind.key_values(bound)
        return self._base.config.context_length - (prefix.length if prefix else 0)

    def submit(self, request: EngineRequest) -> None:
        """See `Engine`."""
        sequence = Sequence(request, None if request.adapter is None else _bound(request.adapter))
        cost, limit = self._cache.cost(sequence.most_tokens), self._cache.limit_bytes
        if cost > limit:
            raise ExhaustedError(
                f"the request may reach {sequence.most_tokens} tokens, whose keys and values take {cost} bytes; the "
                f"server has {limit} for all requests: ask for fewer new tokens, or raise --kv-memory",
                reason="KV_MEMORY",
                metadata={"needed_bytes": str(cost), "limit_bytes": str(limit)},
            )
        self._steps.submit(sequence)

    def cancel(self, request_id: str) -> None:
        """See `Engine`."""
        self._steps.post(request_id)

    @property
    def merged(self) -> AdapterHandle | None:
        """See `Engine`."""
        overlay = self._stepper.overlay
        return overlay.adapter if overlay else None

    @property
    def overlay_bytes(self) -> int:
        """See `Engine`."""
        overlay = self._stepper.overlay
        return overlay.size_bytes if overlay else 0

    def merge(self, adapter: AdapterHandle) -> MergeOutcome:
        """See `Engine`."""
        with self._merging:
            begin = time.perf_counter()
            # The overlay in use stays until the new one is ready, so both must fit.
            room = self._options.overlay_bytes - self.overlay_bytes
            decoder, bound = self._stepper.decoder, _bound(adapter)
            try:
                overlay = self._beside(lambda: build_overlay(self._base, decoder, bound, limit_bytes=room))
            finally:
                self._base.release()
            build_s = time.perf_counter() - begin
            return MergeOutcome(overlay.size_bytes, build_s, self._swap(overlay))

    def unmerge(self) -> float:
        """See `Engine`."""
        with self._merging:
            if self._stepper.overlay is None:
                raise PreconditionError("no adapter is merged", reason="NOT_MERGED")
            return self._swap(None)

    @property
    def _stepper(self) -> Stepper:
        return self._steps.stepper

    def _swap(self, overlay: Overlay | None) -> float:
        """Seconds from asking until the new weights are in force: the rest of the step that is running."""

        def assign() -> None:
            self._stepper.overlay = overlay

        begin = time.perf_counter()
        self._steps.between_steps(assign)
        return time.perf_counter() - begin

    def _beside(self, work: Callable[[], _T]) -> _T:
        """Does something slow in a side thread, and waits for it."""

        def inferring() -> _T:
            with torch.inference_mode():
                return work()

        return self._side.submit(inferring).result()


def _bound(adapter: AdapterHandle) -> Adapter[Any]:
    assert isinstance(adapter, Adapter), "a handle of another engine"
    return adapter
