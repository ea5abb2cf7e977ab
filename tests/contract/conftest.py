"""The engines that the contract holds for, over one tiny base, and a way to wait for their events."""

import importlib.util
import queue
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.subjects import RandomAdapter
from tests.contract.vllm_pool import VllmPool
from tests.engine_options import exact_options
from tests.server import native
from tests.tiny_models import AddedBase
from weft_registry import artifact
from weft_server.engine import (
    AdapterHandle,
    Engine,
    EngineEvent,
    EngineRequest,
    FailEvent,
    FinishEvent,
    Sampling,
    TokenEvent,
)
from weft_server.torch_engine.engine import TorchEngine

MakeEngine = Callable[..., "Harness"]


class Harness:
    """One started engine and its events, by request."""

    def __init__(self, engine: Engine, base: AddedBase, directory: Path, kv_bytes: int) -> None:
        self.engine = engine
        self.kv_bytes = kv_bytes
        self.keeps_overlays = engine.info.name != "vllm"
        """Whether merged weights lie beside the base's, ready to be swapped in. vLLM's are changed in place."""
        self.bound: list[AdapterHandle] = []
        self.exact = engine.info.dtype == "float32"
        """Whether it is exact up to float32 rounding: in bfloat16 merged weights give other near ties."""
        self.base = base
        self._directory = directory
        self._arrived: queue.Queue[EngineEvent] = queue.Queue()
        self._events: dict[str, list[EngineEvent]] = {}

    def deliver(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self._arrived.put(event)

    def submit(self, prompt: Sequence[int], adapter: AdapterHandle | None = None, **fields: Any) -> str:
        """Submits a greedy request for 8 tokens, unless `fields` say otherwise; answers its id."""
        values: dict[str, Any] = {
            "request_id": uuid.uuid4().hex,
            "token_ids": tuple(prompt),
            "adapter": adapter,
            "sampling": Sampling(),
            "max_new_tokens": 8,
            "min_new_tokens": 0,
            "stop_token_ids": frozenset(),
            "logprobs": None,
            **fields,
        }
        self.engine.submit(EngineRequest(**values))
        return str(values["request_id"])

    def wait(self, request_id: str, *, count: int | None = None) -> list[EngineEvent]:
        """The request's events up to its last one, or the first `count` of them."""
        while True:
            known = self._events.setdefault(request_id, [])
            if count is not None and len(known) >= count:
                return known[:count]
            if known and not isinstance(known[-1], TokenEvent):
                return known
            event = self._arrived.get(timeout=60)
            self._events.setdefault(event.request_id, []).append(event)

    def tokens(self, request_id: str) -> list[int]:
        """The tokens of a request that finishes well."""
        events = self.wait(request_id)
        assert isinstance(events[-1], FinishEvent), events[-1]
        return [event.token_id for event in events if isinstance(event, TokenEvent)]

    def failure(self, request_id: str) -> FailEvent:
        """The last event of a request that does not."""
        event = self.wait(request_id)[-1]
        assert isinstance(event, FailEvent), event
        return event

    def bind(self, adapter: RandomAdapter) -> AdapterHandle:
        """Writes the adapter as an artifact and binds it."""
        directory = self._directory / adapter.digest[7:19]
        if not directory.exists():
            adapter.write(directory, self.base.stored.spec, "test/random")
        manifest = artifact.read(directory)
        handle = self.engine.bind(directory, manifest, manifest.digest())
        self.bound.append(handle)
        return handle


@pytest.fixture(scope="session")
def vllm_pool(tiny_base: Callable[..., AddedBase], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmPool]:
    """vLLM's engines, one for each set of options: they start slowly, and tests take turns."""
    pool = VllmPool(tiny_base, tmp_path_factory.mktemp("vllm"))
    yield pool
    pool.close()


@pytest.fixture(params=["torch", "native", pytest.param("vllm", marks=pytest.mark.vllm)])
def make_engine(
    request: pytest.FixtureRequest, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> Iterator[MakeEngine]:
    """`make_engine(**options)`: a started engine of each implementation, as good as new, and put away afterwards."""
    if request.param == "vllm":
        if importlib.util.find_spec("vllm") is None:
            pytest.skip("vLLM is not installed here: see `make test-vllm`")
        pool: VllmPool = request.getfixturevalue("vllm_pool")
        lent: list[Harness] = []

        def lend(**options: Any) -> Harness:
            values = {"kv_bytes": 64 << 20, **options}
            engine = pool.engine(**values)
            harness = Harness(engine, pool.base, tmp_path / f"adapters-{len(lent)}", pool.kv_bytes(values["kv_bytes"]))
            pool.connect(engine, harness.deliver)
            lent.append(harness)
            return harness

        yield lend
        for harness in lent:
            pool.clean(harness.engine, harness.bound)
        return
    made: list[Engine] = []

    def make(**options: Any) -> Harness:
        base = tiny_base()
        values: dict[str, Any] = {"kv_bytes": 64 << 20, "overlay_bytes": 64 << 20, **options}
        if request.param == "native":
            values |= {"dtype": torch.bfloat16, "native": native.library(base.stored)}
        engine = TorchEngine(base.stored, exact_options(**values))
        made.append(engine)
        harness = Harness(engine, base, tmp_path / f"adapters-{len(made)}", values["kv_bytes"])
        engine.start(harness.deliver)
        return harness

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def harness(make_engine: MakeEngine) -> Harness:
    """An engine with the usual options."""
    return make_engine()
