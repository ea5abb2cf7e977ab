"""Driving the embedded engine directly: whole batches for rates, step by step for logits."""

from __future__ import annotations

import math
import queue
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects import benchmark_home
from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_registry.errors import UnsupportedError
from weft_server.engine import EngineEvent, EngineRequest, FailEvent, FinishEvent, Sampling, TokenEvent
from weft_server.torch_engine.assemble import Assembler
from weft_server.torch_engine.decoder import TorchDecoder
from weft_server.torch_engine.decoders import Decoder
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.engine import TorchEngine, TorchEngineOptions
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.native.choose import native_library
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Limits, Scheduler
from weft_server.torch_engine.sequence import Sequence as EngineSequence


def native_library_of(base: StoredBase) -> Path | None:
    """The native decoder's library, or None, said aloud, where the engine computes with torch."""
    try:
        return native_library(base, benchmark_home().cache / "native")
    except UnsupportedError as error:
        print(f"torch kernels: {error}", file=sys.stderr)
        return None


def engine_options(
    dtype: torch.dtype = torch.bfloat16, *, copies: bool = True, native: Path | None = None
) -> TorchEngineOptions:
    """The embedded engine as `weft serve` sets it up on a CPU, with room for every benchmark."""
    return TorchEngineOptions(
        native=native,
        device=torch.device("cpu"),
        dtype=dtype,
        copies=copies,
        max_batch_size=64,
        max_prefill_tokens=1 << 20,
        max_waiting=1024,
        kv_bytes=4 << 30,
        overlay_bytes=2 << 30,
    )


@dataclass(frozen=True)
class Run:
    """What a batch gave, and how fast."""

    tokens: list[list[int]]
    whole_rate: float
    """New tokens over the whole time, prompts included, in tokens/s."""
    decode_rate: float
    """Tokens/s of the steps that only decode: those after every request has its first token, up to the one that ends
    the first request. NaN where there is no such step."""


class Runner:
    """Runs whole batches on an engine."""

    def __init__(self, engine: TorchEngine) -> None:
        self._events: queue.Queue[tuple[float, Sequence[EngineEvent]]] = queue.Queue()
        self._engine = engine
        engine.start(self._put)

    def run(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter[Any] | None], new_tokens: int
    ) -> list[list[int]]:
        """The greedy tokens of each request, all submitted at once."""
        return self.timed(prompts, adapters, new_tokens).tokens

    def timed(self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter[Any] | None], new_tokens: int) -> Run:
        """The same, with its rates. The times are those of the step thread, at the end of each step."""
        ids = [uuid.uuid4().hex for _ in prompts]
        tokens: dict[str, list[int]] = {request_id: [] for request_id in ids}
        left, silent, decoded = set(ids), set(ids), 0
        first = last = float("nan")
        begin = now = time.perf_counter()
        for request_id, prompt, adapter in zip(ids, prompts, adapters, strict=True):
            self._engine.submit(_request(request_id, prompt, adapter, new_tokens))
        while left:
            now, events = self._events.get(timeout=600)
            decoding = not silent and len(left) == len(ids)
            for event in events:
                if isinstance(event, TokenEvent):
                    tokens[event.request_id].append(event.token_id)
                    silent.discard(event.request_id)
                    decoded += decoding
                elif isinstance(event, FinishEvent):
                    left.remove(event.request_id)
                elif isinstance(event, FailEvent):
                    raise RuntimeError(f"a request failed: {event.error}")
            if decoding:
                last = now
            elif not silent and math.isnan(first):
                first = now
        return Run([tokens[i] for i in ids], len(ids) * new_tokens / (now - begin), decoded / (last - first))

    def _put(self, events: Sequence[EngineEvent]) -> None:
        self._events.put((time.perf_counter(), events))


@dataclass(frozen=True)
class Trace:
    """One request's greedy tokens, and the logits that each was chosen from."""

    tokens: list[int]
    logits_SV: Tensor


class Tracer:
    """Runs the decoder step by step as the engine does, keeping every logit that a token was chosen from."""

    def __init__(
        self,
        base: StoredBase,
        dtype: torch.dtype = torch.float32,
        *,
        copies: bool = False,
        decoder: Decoder | None = None,
    ) -> None:
        """With a torch decoder of its own, unless it is given another to run."""
        self._device = torch.device("cpu")
        self.base = base
        with torch.inference_mode():
            self.decoder = decoder or TorchDecoder(base, KernelFactory(self._device, dtype, copies))

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[Adapter[Any] | None],
        new_tokens: int,
        overlay: Overlay | None = None,
        *,
        max_prefill_tokens: int = 1 << 20,
        kv_bytes: int = 1 << 30,
    ) -> list[Trace]:
        """All requests in one batch, greedily, over an empty cache; prompts in pieces of `max_prefill_tokens`."""
        limits = Limits(len(prompts), max_prefill_tokens, max_prefill_tokens, len(prompts))
        scheduler = Scheduler(self.decoder.new_cache(kv_bytes), limits)
        sequences = [
            EngineSequence(_request(str(index), prompt, adapter, new_tokens), adapter)
            for index, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True))
        ]
        for sequence in sequences:
            scheduler.add(sequence)
        active = ActiveAdapters()
        assembler = Assembler(active, self._device)
        logits: list[list[Tensor]] = [[] for _ in prompts]
        while not scheduler.idle:
            step, parts = assembler.assemble(scheduler.schedule(), overlay)
            rows = self.decoder.forward(step, active, overlay).logits_SV
            for part, row in zip(parts, rows, strict=True):
                scheduler.computed(part)
                if part.samples:
                    request = part.sequence.request
                    part.sequence.token_ids.append(int(row.argmax()))
                    logits[int(request.request_id)].append(row.clone())
                    if part.sequence.num_generated == new_tokens:
                        scheduler.remove(request.request_id)
        tokens = [s.token_ids[len(s.request.token_ids) :] for s in sequences]
        return [Trace(new, torch.stack(kept)) for new, kept in zip(tokens, logits, strict=True)]


def _request(request_id: str, prompt: Sequence[int], adapter: Adapter[Any] | None, new_tokens: int) -> EngineRequest:
    return EngineRequest(request_id, tuple(prompt), adapter, Sampling(), new_tokens, 0, frozenset(), logprobs=None)
