"""vLLM as an engine: its asynchronous front end in a loop of its own, its scheduler and model in another process.

The server's threads talk to this class; it talks to that loop. Tokens come back from vLLM as its process makes them and
leave here in batches, once a step at most.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds import KINDS
from weft_registry.errors import (
    ExhaustedError,
    InvalidInputError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)
from weft_registry.manifest import Manifest
from weft_server.engine import AdapterHandle, Artifact, Deliver, EngineInfo, EngineRequest, MergeOutcome
from weft_server.stats import EngineStats
from weft_server.vllm_engine import arguments
from weft_server.vllm_engine.adapters import AdapterFiles, VllmAdapter
from weft_server.vllm_engine.computing import Computing
from weft_server.vllm_engine.environment import prepare
from weft_server.vllm_engine.kinds import SERVED
from weft_server.vllm_engine.launch import Launched, launch
from weft_server.vllm_engine.loop import LoopThread
from weft_server.vllm_engine.merges import Merges
from weft_server.vllm_engine.options import VllmEngineOptions
from weft_server.vllm_engine.requests import Requests
from weft_server.vllm_engine.stats import EngineCounts


class VllmEngine:
    """Implements `weft_server.engine.Engine`."""

    def __init__(self, base: StoredBase, options: VllmEngineOptions) -> None:
        """Starts vLLM, and waits for it. Raises what `environment.prepare` and `launch.launch` raise."""
        prepare(options.num_threads or os.cpu_count() or 1)
        self._base = base
        self._options = options
        self._counts = EngineCounts()
        self._requests = Requests(options.max_waiting)
        self._computing: Computing | None = None
        self._closed = False
        options.cache.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix="vllm-adapters-", dir=options.cache))
        self._loop = LoopThread("weft-vllm")
        try:
            self.launched: Launched = launch(self._loop, base, options, self._scratch, self._counts)
        except BaseException:
            self._loop.close()
            shutil.rmtree(self._scratch)
            raise
        self._files = AdapterFiles(
            self._scratch,
            base.spec,
            max_rank=self.launched.slots.max_rank,
            modules=self.launched.modules,
            dtype=getattr(torch, options.dtype),
            pooled=not self.launched.why_expanded,
        )
        merges = options.cache / "vllm-merges"
        self._merges = Merges(base, options.dtype, options.overlay_bytes, merges, self._loop, self._counts)

    @property
    def info(self) -> EngineInfo:
        """See `Engine`."""
        return EngineInfo(
            name="vllm",
            device=self.launched.device,
            dtype=self._options.dtype,
            context_length=self.launched.context_length,
            vocabulary_size=self._base.config.vocab_size,
            max_batch_size=self.launched.max_batch_size,
            kinds=tuple(SERVED),
            mergeable_kinds=tuple(name for name in SERVED if KINDS[name].mergeable),
        )

    @property
    def alive(self) -> bool:
        """See `Engine`."""
        return self._requests.is_open and not self._closed and not self.launched.llm.errored

    @property
    def base_bytes(self) -> int:
        """See `Engine`."""
        return self.launched.base_bytes

    def start(self, deliver: Deliver) -> None:
        """See `Engine`."""

        def begin() -> None:
            slots = self.launched.slots
            lora_slots = slots.lora_slots if slots.lora_slots < slots.max_loras else None
            self._computing = Computing(
                self.launched.llm, self._requests, self._counts, deliver, self._merges.given, lora_slots
            )
            self._requests.open()

        self._loop.call(begin)

    def close(self) -> None:
        """See `Engine`."""
        if self._closed:
            return
        self._closed = True
        self._requests.close(UnavailableError("the engine is not running"))
        if self._computing is not None:
            self._loop.run(self._computing.end(UnavailableError("the server is shutting down")))
            self._loop.run(self._computing.close())
        self._loop.call(self.launched.llm.shutdown)
        self._loop.close()
        self._merges.close()
        self._files.close()

    def bind(self, directory: Path, manifest: Manifest, digest: str, parts: Sequence[Artifact] = ()) -> VllmAdapter:
        """See `Engine`. No kind that vLLM serves here has parts."""
        return self._held(self._files.bind(directory, manifest, digest), f"{manifest.name!r} ({digest})")

    def compose(self, parts: Sequence[tuple[AdapterHandle, float]], digest: str) -> VllmAdapter:
        """See `Engine`."""
        bound = [(_bound(part), weight) for part, weight in parts]
        return self._held(self._files.compose(bound, digest), digest)

    def _held(self, adapter: VllmAdapter, name: str) -> VllmAdapter:
        """The adapter, loaded by vLLM's workers here and now: what they refuse is refused before the first request."""
        try:
            self._loop.run(self._add(adapter))
        except Exception as error:  # vLLM answers for its process with bare Exceptions
            self._files.remove(adapter)
            if not self.alive:
                raise UnavailableError(f"vLLM's process is gone: {error}", reason="ENGINE_DIED") from error
            raise UnsupportedError(f"vLLM refuses the adapter {name}: {error}", reason="VLLM_REFUSED") from error
        return adapter

    async def _add(self, adapter: VllmAdapter) -> None:
        from weft_server.vllm_engine.conversion import lora_request

        if adapter.lora_id is not None:
            await self.launched.llm.add_lora(lora_request(adapter))
        elif adapter.prefix is not None:
            await self.launched.llm.collective_rpc("weft_load_prefix", args=(vars(adapter.prefix),))

    def release(self, adapter: AdapterHandle) -> None:
        """See `Engine`."""
        bound = _bound(adapter)
        self._counts.forget(bound.digest)
        self._files.remove(bound)
        computing = self._computing
        if self.alive and computing is not None:
            self._loop.post(lambda: computing.background(self._drop(bound)))

    async def _drop(self, adapter: VllmAdapter) -> None:
        if adapter.lora_id is not None:
            await self.launched.llm.remove_lora(adapter.lora_id)
        elif adapter.prefix is not None:
            await self.launched.llm.collective_rpc("weft_forget_prefix", args=(adapter.digest,))

    def context_room(self, adapter: AdapterHandle | None) -> int:
        """See `Engine`."""
        return self.launched.context_length - _num_virtual(adapter)

    def submit(self, request: EngineRequest) -> None:
        """See `Engine`."""
        self._check(request)
        if self.launched.llm.errored and not self._closed:
            raise UnavailableError("the engine stopped: vLLM's process is gone", reason="ENGINE_DIED")
        running = self._requests.add(request)
        assert self._computing is not None, "no request is taken before the start"
        self._loop.post(self._computing.begin, running)

    def _check(self, request: EngineRequest) -> None:
        most = _num_virtual(request.adapter) + len(request.token_ids) + request.max_new_tokens - 1
        room = min(self.launched.num_blocks * self.launched.block_tokens, self.launched.context_length)
        if most > room:
            kv_bytes = self._options.kv_bytes
            raise ExhaustedError(
                f"the request may reach {most} tokens, and the key-value cache holds {room} for one request"
                + (f" ({kv_bytes} bytes)" if kv_bytes else "")
                + ": ask for fewer, or raise --kv-memory",
                reason="KV_MEMORY",
                metadata={"needed_tokens": str(most), "limit_tokens": str(room)},
            )
        if request.logprobs is not None and request.logprobs > self.launched.max_logprobs:
            raise InvalidInputError(
                f"logprobs: {request.logprobs}, and vLLM reports at most {self.launched.max_logprobs}: see --vllm "
                "max_logprobs"
            )

    def cancel(self, request_id: str) -> None:
        """See `Engine`."""
        if self._computing is not None:
            self._loop.post(self._computing.cancel, request_id)

    def stats(self) -> EngineStats:
        """See `Engine`."""
        running, waiting, adapters = self._requests.counts()
        return self._counts.snapshot(
            running=running,
            waiting=waiting,
            active_adapters=adapters,
            blocks=self.launched.num_blocks,
            block_bytes=self.launched.block_tokens * arguments.token_bytes(self._base.spec, self._options.dtype),
            pack_bytes=self.launched.slot_bytes,
        )

    @property
    def merged(self) -> AdapterHandle | None:
        """See `Engine`."""
        return self._merges.adapter

    @property
    def overlay_bytes(self) -> int:
        """See `Engine`."""
        return self._merges.size_bytes

    @property
    def overlays(self) -> Mapping[str, int]:
        """See `Engine`. vLLM's weights are changed in place: what is not merged is not kept."""
        adapter = self._merges.adapter
        return {} if adapter is None else {adapter.digest: self._merges.size_bytes}

    def merge(self, adapter: AdapterHandle) -> MergeOutcome:
        """See `Engine`. Waits for the requests that run, and new ones wait meanwhile: see `phases`."""
        return self._merges.merge(_bound(adapter), self._started().phases)

    def unmerge(self) -> float:
        """See `Engine`. Waits for the requests that run on the merged weights."""
        return self._merges.unmerge(self._started().phases)

    def _started(self) -> Computing:
        if self._computing is None or self._closed:
            raise PreconditionError("the engine is not running", reason="NOT_RUNNING")
        return self._computing


def _bound(adapter: Any) -> VllmAdapter:
    assert isinstance(adapter, VllmAdapter), "a handle of another engine"
    return adapter


def _num_virtual(adapter: AdapterHandle | None) -> int:
    return 0 if adapter is None else _bound(adapter).num_virtual
