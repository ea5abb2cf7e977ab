"""vLLM's process dies, and nobody waits for ever."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_registry import artifact
from weft_registry.errors import UnavailableError
from weft_server.engine import EngineEvent, EngineRequest, FailEvent, FinishEvent, Sampling, TokenEvent
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.options import VllmEngineOptions


def request(request_id: str, new: int) -> EngineRequest:
    return EngineRequest(request_id, (1, 2), None, Sampling(), new, 0, frozenset(), None)


def test_when_its_process_is_killed_every_request_fails_and_another_engine_goes_on(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base = tiny_base(head_dim=32).stored
    options = VllmEngineOptions(cache=tmp_path, dtype="float32", max_batch_size=2, kv_bytes=1 << 20, num_threads=2)
    events: queue.Queue[EngineEvent] = queue.Queue()

    def deliver(found: Sequence[EngineEvent]) -> None:
        for event in found:
            events.put(event)

    def started() -> VllmEngine:
        engine = VllmEngine(base, options)
        engine.start(deliver)
        return engine

    engine = started()
    try:
        random_adapter("lora", base.spec, 1).write(tmp_path / "lora", base.spec, "test/lora")
        manifest = artifact.read(tmp_path / "lora")
        # One that runs and three that wait.
        for index in range(4):
            engine.submit(request(f"r{index}", 250))
        assert isinstance(events.get(timeout=60), TokenEvent)
        (process_id,) = engine.launched.process_ids
        os.kill(process_id, signal.SIGKILL)
        failed: dict[str, EngineEvent] = {}
        while len(failed) < 4:
            event = events.get(timeout=60)
            if not isinstance(event, TokenEvent):
                failed[event.request_id] = event
        for event in failed.values():
            assert isinstance(event, FailEvent)
            assert isinstance(event.error, UnavailableError)
            assert event.error.reason == "ENGINE_DIED"
        assert not engine.alive
        with pytest.raises(UnavailableError):
            engine.submit(request("late", 1))
        with pytest.raises(UnavailableError):
            engine.bind(tmp_path / "lora", manifest, manifest.digest())
    finally:
        engine.close()
    again = started()
    try:
        again.submit(request("again", 3))
        found = [events.get(timeout=60) for _ in range(4)]
        assert isinstance(found[-1], FinishEvent)
    finally:
        again.close()
    assert not list(tmp_path.glob("vllm-adapters-*"))
