"""Which adapter a person or a policy has merged on vLLM, and what its weights are made of.

When they are in force is another matter: see `phases`.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from weft_adapters.base.load import StoredBase
from weft_registry.errors import ExhaustedError, PreconditionError
from weft_server.engine import MergeOutcome
from weft_server.vllm_engine.adapters import VllmAdapter
from weft_server.vllm_engine.loop import LoopThread
from weft_server.vllm_engine.phases import Phases
from weft_server.vllm_engine.stats import EngineCounts

Given = tuple[str, str, str]
"""What vLLM's workers are told to merge an adapter."""


class Merges:
    """Owns who is merged, and the file that his weights are read from. Any thread may call it."""

    def __init__(
        self, base: StoredBase, dtype: str, limit_bytes: int, scratch: Path, loop: LoopThread, counts: EngineCounts
    ) -> None:
        self.adapter: VllmAdapter | None = None
        """Who is merged."""
        self.size_bytes = 0
        """What his weights take."""
        self._base = base
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._limit_bytes = limit_bytes
        self._scratch = scratch
        self._loop = loop
        self._counts = counts
        self._switching = threading.Lock()
        self._files = ExitStack()
        self._given: dict[str, Given] = {}

    def given(self, digest: str) -> Given:
        """For an adapter that is merged, or about to be."""
        return self._given[digest]

    def merge(self, adapter: VllmAdapter, phases: Phases) -> MergeOutcome:
        """See `Engine.merge`."""
        from weft_server.vllm_engine.base.merge_file import adapter_merge_file

        with self._switching:
            begin = time.perf_counter()
            with ExitStack() as files:
                file: Any = files.enter_context(
                    adapter_merge_file(adapter.bound, self._base, self._scratch, dtype=self._dtype)
                )
                size_bytes = self._reserve(adapter.digest, dense=file.dense)
                build_s = time.perf_counter() - begin
                begin, steps = time.perf_counter(), self._counts.steps
                self._given[adapter.digest] = file.arguments
                try:
                    self._loop.run(phases.want(adapter.digest))
                except BaseException:
                    self._forget()
                    raise
                if self.adapter is not None and self.adapter.digest != adapter.digest:
                    del self._given[self.adapter.digest]
                # It stays as long as it may be read again: a phase without merged weights may come between.
                self._files.close()
                self._files = files.pop_all()
            self.adapter, self.size_bytes = adapter, size_bytes
            return MergeOutcome(size_bytes, build_s, time.perf_counter() - begin, self._counts.steps - steps, hot=False)

    def unmerge(self, phases: Phases) -> float:
        """See `Engine.unmerge`."""
        with self._switching:
            if self.adapter is None:
                raise PreconditionError("no adapter is merged", reason="NOT_MERGED")
            begin = time.perf_counter()
            self._loop.run(phases.want(None))
            self._forget()
            return time.perf_counter() - begin

    def close(self) -> None:
        """Removes the file."""
        self._files.close()

    def _forget(self) -> None:
        self.adapter, self.size_bytes = None, 0
        self._given.clear()
        self._files.close()

    def _reserve(self, digest: str, *, dense: bool) -> int:
        from weft_server.vllm_engine.base.merge_file import merge_bytes

        size_bytes = merge_bytes(self._base, self._dtype, dense=dense)
        if size_bytes > self._limit_bytes:
            raise ExhaustedError(
                f"the merged weights of {digest} take {size_bytes} bytes, and {self._limit_bytes} are allowed for "
                "merged weights: raise --overlay-memory, or go on serving it unmerged in the batch",
                reason="OVERLAY_MEMORY",
                metadata={"limit_bytes": str(self._limit_bytes), "adapter_digest": digest},
            )
        return size_bytes
