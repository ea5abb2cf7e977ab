"""vLLM's engines for tests: each takes fifteen seconds to start, so tests with the same options take turns on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tiny_models import AddedBase
from weft_server.engine import AdapterHandle, Deliver, EngineEvent

if TYPE_CHECKING:
    from weft_server.vllm_engine.engine import VllmEngine

_SCALE = 3
"""vLLM's tokens are twice as large here (its CPU kernels take heads of 32 and up), and its blocks of 32 tokens need a
spare one."""


class VllmPool:
    """Owns the engines."""

    def __init__(self, tiny_base: Callable[..., AddedBase], cache: Path) -> None:
        self.base = tiny_base(head_dim=32)
        self._cache = cache
        self._engines: dict[str, VllmEngine] = {}
        self._readers: dict[int, Deliver] = {}

    @staticmethod
    def kv_bytes(wanted: int) -> int:
        """The cache that is as many tokens as `wanted` bytes are in the other engine's."""
        return _SCALE * wanted

    def engine(self, **options: Any) -> VllmEngine:
        """A started engine with these options, and nothing in it."""
        from weft_server.vllm_engine.engine import VllmEngine
        from weft_server.vllm_engine.options import VllmEngineOptions

        key = repr(sorted(options.items()))
        found = self._engines.get(key)
        if found is None or not found.alive:
            values: dict[str, Any] = {
                "dtype": "float32",
                "max_batch_size": 8,
                "max_waiting": 64,
                "adapter_bytes": 64 << 20,
                "overlay_bytes": 64 << 20,
                "num_threads": 2,
                **options,
            }
            values["kv_bytes"] = self.kv_bytes(values["kv_bytes"])
            found = VllmEngine(self.base.stored, VllmEngineOptions(cache=self._cache, **values))
            self._engines[key] = found
            engine = found
            found.start(lambda events: self._pass_on(engine, events))
        self._forget(found)
        return found

    def connect(self, engine: VllmEngine, deliver: Deliver) -> None:
        """From now on the engine's events go to `deliver`."""
        self._readers[id(engine)] = deliver

    def clean(self, engine: Any, bound: Sequence[AdapterHandle]) -> None:
        """Puts an engine back: nothing runs, nothing is merged, no adapter is bound."""
        if not engine.alive:
            return
        for running in engine._requests:
            engine.cancel(running.request.request_id)
        if engine.merged is not None:
            engine.unmerge()
        for handle in bound:
            engine.release(handle)

    def close(self) -> None:
        """Ends all of them."""
        for engine in self._engines.values():
            engine.close()

    def _pass_on(self, engine: VllmEngine, events: Sequence[EngineEvent]) -> None:
        self._readers[id(engine)](events)

    def _forget(self, engine: VllmEngine) -> None:
        """No keys and values of earlier tests, and counts from zero."""
        engine._loop.run(engine.launched.llm.reset_prefix_cache())
        engine._counts.reset()
