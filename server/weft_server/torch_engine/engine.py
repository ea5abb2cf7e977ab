"""The embedded engine: a thread that takes one step after another, and the mailbox in front of it.

What the steps change belongs to the `Stepper`, and the step thread alone touches it. Other threads leave messages: new
requests, cancellations, and small actions to be done between two steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.binding import bind
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter
from weft_registry.errors import ExhaustedError, PreconditionError, UnavailableError
from weft_registry.manifest import Manifest
from weft_server.engine import (
    AdapterHandle,
    Deliver,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    FailEvent,
    MergeOutcome,
)
from weft_server.torch_engine.decoder import Decoder
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.kv_cache import CacheShape, KvCache
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Scheduler
from weft_server.torch_engine.sequence import Sequence
from weft_server.torch_engine.stepper import Stepper

_log = logging.getLogger(__name__)
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


class TorchEngine:
    """Implements `weft_server.engine.Engine`."""

    def __init__(self, base: StoredBase, options: TorchEngineOptions) -> None:
        self._base = base
        self._options = options
        with torch.inference_mode():
            self._decoder = Decoder(base, KernelFactory(options.device, options.dtype, options.copies))
        base.release()
        config = base.config
        shape = CacheShape(config.num_layers, config.num_kv_heads, config.head_dim, options.dtype, options.device)
        self._cache: KvCache[Sequence] = KvCache(shape, options.kv_bytes)
        scheduler = Scheduler(
            self._cache, max_batch_size=options.max_batch_size, max_prefill_tokens=options.max_prefill_tokens
        )
        self._stepper = Stepper(self._decoder, scheduler, options.device)
        self._inbox: deque[Sequence | str | Callable[[], None]] = deque()
        """New sequences, ids to cancel, and actions, in order of arrival."""
        self._wake = threading.Condition()
        self._closing = False
        self._queued = 0
        """Sequences submitted and not yet in the batch, as `submit` counts them."""
        self._merging = threading.Lock()
        self._thread: threading.Thread | None = None

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
        return self._thread is not None and self._thread.is_alive()

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's weights in memory, copies included."""
        return self._decoder.size_bytes

    def start(self, deliver: Deliver) -> None:
        """See `Engine`."""
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="weft-step", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `Engine`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def bind(self, directory: Path, manifest: Manifest, digest: str) -> Adapter[Any]:
        """See `Engine`."""
        with torch.inference_mode():
            return bind(
                directory,
                manifest,
                self._base.spec,
                dtype=self._options.dtype,
                device=self._options.device,
                digest=digest,
            )

    def release(self, adapter: AdapterHandle) -> None:
        """See `Engine`."""
        digest = adapter.digest
        self._post(lambda: self._stepper.active.forget(digest))

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
        with self._wake:
            if self._closing:
                raise UnavailableError("the server is stopping")
            if self._queued >= self._options.max_waiting:
                raise ExhaustedError(
                    f"{self._queued} requests are waiting, the most this server queues: come back later",
                    reason="QUEUE_FULL",
                    metadata={"limit": str(self._options.max_waiting)},
                    retry_after_s=1.0,
                )
            self._queued += 1
            self._inbox.append(sequence)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """See `Engine`."""
        self._post(request_id)

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
            try:
                overlay = build_overlay(self._base, self._decoder, _bound(adapter), limit_bytes=room)
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

    def _swap(self, overlay: Overlay | None) -> float:
        """Seconds from asking until the new weights are in force: the rest of the step that is running."""

        def assign() -> None:
            self._stepper.overlay = overlay

        begin = time.perf_counter()
        self._between_steps(assign)
        return time.perf_counter() - begin

    def _between_steps(self, action: Callable[[], _T]) -> _T:
        """Has the step thread do something small between two steps, and waits for it."""
        done: Future[_T] = Future()

        def act() -> None:
            done.set_result(action())

        with self._wake:
            if self._closing or self._thread is None:
                raise UnavailableError("the engine is not running")
            self._inbox.append(act)
            self._wake.notify()
        return done.result()

    def _post(self, message: str | Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    # The step thread.

    def _run(self, deliver: Deliver) -> None:
        try:
            self._loop(deliver)
        except Exception as error:
            # Nothing may leave a caller waiting for a thread that is gone.
            _log.exception("the step thread died")
            with self._wake:
                self._closing = True
                left = [message for message in self._inbox if isinstance(message, Sequence)]
            failure = UnavailableError(f"the engine stopped: {error}", reason="ENGINE_DIED")
            deliver(self._stepper.drain(failure) + [FailEvent(s.request.request_id, failure) for s in left])
            raise

    @torch.inference_mode()
    def _loop(self, deliver: Deliver) -> None:
        while True:
            with self._wake:
                while not self._inbox and self._stepper.scheduler.idle and not self._closing:
                    self._wake.wait()
                messages, closing = list(self._inbox), self._closing
                self._inbox.clear()
            events = self._receive(messages)
            if closing:
                deliver(events + self._stepper.drain(UnavailableError("the server is stopping")))
                return
            events += self._stepper.step()
            with self._wake:
                self._queued = self._stepper.scheduler.waiting_count + sum(
                    isinstance(message, Sequence) for message in self._inbox
                )
            if events:
                deliver(events)

    def _receive(self, messages: list[Sequence | str | Callable[[], None]]) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        for message in messages:
            if isinstance(message, Sequence):
                self._stepper.scheduler.add(message)
            elif isinstance(message, str):
                events += self._stepper.cancel(message)
            else:
                message()
        return events


def _bound(adapter: AdapterHandle) -> Adapter[Any]:
    assert isinstance(adapter, Adapter), "a handle of another engine"
    return adapter
