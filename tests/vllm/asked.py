"""Engines of both kinds in float32 over one tiny base, asked for tokens."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.subjects import RandomAdapter
from tests.engine_options import exact_options
from tests.tiny_models import AddedBase
from weft_registry import artifact
from weft_server.engine import EngineEvent, EngineRequest, FinishEvent, Sampling, TokenEvent
from weft_server.torch_engine.engine import TorchEngine
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.options import VllmEngineOptions

PROMPT = (3, 1, 4, 1, 5)


class Asked:
    """An engine, and the tokens that it answers."""

    def __init__(self, engine: Any, directory: Path, base: AddedBase) -> None:
        self.engine = engine
        self._directory = directory
        self._base = base
        self._events: queue.Queue[EngineEvent] = queue.Queue()
        engine.start(self._deliver)

    def _deliver(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self._events.put(event)

    def bind(self, adapter: RandomAdapter) -> Any:
        directory = self._directory / uuid.uuid4().hex
        adapter.write(directory, self._base.stored.spec, "test/random")
        manifest = artifact.read(directory)
        return self.engine.bind(directory, manifest, manifest.digest())

    def answers(self, handles: Sequence[Any], new: int = 12) -> list[list[int]]:
        """Greedy tokens of one request for each handle, all at once."""
        found = self.ends(handles, new)
        assert all(isinstance(one, list) for one in found), found
        return [one for one in found if isinstance(one, list)]

    def ends(self, handles: Sequence[Any], new: int = 12) -> list[list[int] | str]:
        """As `answers`; the reason of a request that fails in place of its tokens."""
        ids = [uuid.uuid4().hex for _ in handles]
        for request_id, handle in zip(ids, handles, strict=True):
            request = EngineRequest(request_id, PROMPT, handle, Sampling(), new, 0, frozenset(), None)
            self.engine.submit(request)
        found: dict[str, list[int] | str] = {}
        tokens: dict[str, list[int]] = {request_id: [] for request_id in ids}
        while len(found) < len(ids):
            event = self._events.get(timeout=60)
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append(event.token_id)
            elif isinstance(event, FinishEvent):
                found[event.request_id] = tokens[event.request_id]
            else:
                assert event.error is not None, event
                found[event.request_id] = event.error.reason
        return [found[request_id] for request_id in ids]


@contextmanager
def vllm_asked(base: AddedBase, directory: Path, arguments: Mapping[str, Any], **options: Any) -> Iterator[Asked]:
    """A vLLM engine with eight rows a batch. `arguments` are vLLM's, `options` the engine's."""
    settings: dict[str, Any] = {
        "cache": directory,
        "dtype": "float32",
        "max_batch_size": 8,
        "kv_bytes": 1 << 22,
        "adapter_bytes": 64 << 20,
        "num_threads": 2,
    }
    engine = VllmEngine(base.stored, VllmEngineOptions(arguments=arguments, **(settings | options)))
    try:
        yield Asked(engine, directory / "artifacts", base)
    finally:
        engine.close()


@contextmanager
def torch_asked(base: AddedBase, directory: Path) -> Iterator[Asked]:
    """The torch engine, with as many rows."""
    engine = TorchEngine(base.stored, exact_options())
    try:
        yield Asked(engine, directory, base)
    finally:
        engine.close()
