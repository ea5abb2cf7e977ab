"""Driving the embedded engine directly: whole batches for rates, step by step for logits."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_server.engine import EngineEvent, EngineRequest, FailEvent, FinishEvent, Sampling, TokenEvent
from weft_server.torch_engine.assemble import assemble
from weft_server.torch_engine.decoder import Decoder
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.engine import TorchEngine, TorchEngineOptions
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.kv_cache import CacheShape, KvCache
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Scheduler
from weft_server.torch_engine.sequence import Sequence as EngineSequence


def engine_options(dtype: torch.dtype = torch.bfloat16, *, copies: bool = True) -> TorchEngineOptions:
    """The embedded engine as `weft serve` sets it up on a CPU, with room for every benchmark."""
    return TorchEngineOptions(
        device=torch.device("cpu"),
        dtype=dtype,
        copies=copies,
        max_batch_size=64,
        max_prefill_tokens=1 << 20,
        max_waiting=1024,
        kv_bytes=4 << 30,
        overlay_bytes=2 << 30,
    )


class Runner:
    """Runs whole batches on an engine."""

    def __init__(self, engine: TorchEngine) -> None:
        self._events: queue.Queue[EngineEvent] = queue.Queue()
        self._engine = engine
        engine.start(self._put)

    def run(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter[Any] | None], new_tokens: int
    ) -> list[list[int]]:
        """The greedy tokens of each request, all submitted at once."""
        ids = [uuid.uuid4().hex for _ in prompts]
        for request_id, prompt, adapter in zip(ids, prompts, adapters, strict=True):
            self._engine.submit(_request(request_id, prompt, adapter, new_tokens))
        tokens: dict[str, list[int]] = {request_id: [] for request_id in ids}
        left = set(ids)
        while left:
            event = self._events.get(timeout=600)
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append(event.token_id)
            elif isinstance(event, FinishEvent):
                left.remove(event.request_id)
            elif isinstance(event, FailEvent):
                raise RuntimeError(f"a request failed: {event.error}")
        return [tokens[request_id] for request_id in ids]

    def _put(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self._events.put(event)


@dataclass(frozen=True)
class Trace:
    """One request's greedy tokens, and the logits that each was chosen from."""

    tokens: list[int]
    logits_SV: Tensor


class Tracer:
    """Runs the decoder step by step as the engine does, keeping every logit."""

    def __init__(self, base: StoredBase, dtype: torch.dtype = torch.float32, *, copies: bool = False) -> None:
        device = torch.device("cpu")
        self.base = base
        with torch.inference_mode():
            self.decoder = Decoder(base, KernelFactory(device, dtype, copies))
        c = base.config
        self._shape = CacheShape(c.num_layers, c.num_kv_heads, c.head_dim, dtype, device)

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[Adapter[Any] | None],
        new_tokens: int,
        overlay: Overlay | None = None,
    ) -> list[Trace]:
        """All requests in one batch, greedily."""
        scheduler = Scheduler(KvCache(self._shape, 8 << 30), max_batch_size=len(prompts), max_prefill_tokens=1 << 30)
        sequences = [
            EngineSequence(_request(str(index), prompt, adapter, new_tokens), adapter)
            for index, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True))
        ]
        for sequence in sequences:
            scheduler.add(sequence)
        active = ActiveAdapters()
        logits: list[list[Tensor]] = [[] for _ in prompts]
        for _ in range(new_tokens):
            step, ordered = assemble(scheduler.schedule(), active, overlay, self._shape.device)
            rows = self.decoder.forward(step, active, overlay)
            for sequence, row in zip(ordered, rows, strict=True):
                sequence.advance()
                sequence.generated.append(int(row.argmax()))
                logits[int(sequence.request.request_id)].append(row)
        return [Trace(s.generated, torch.stack(kept)) for s, kept in zip(sequences, logits, strict=True)]


def _request(request_id: str, prompt: Sequence[int], adapter: Adapter[Any] | None, new_tokens: int) -> EngineRequest:
    return EngineRequest(request_id, tuple(prompt), adapter, Sampling(), new_tokens, 0, frozenset(), logprobs=None)
