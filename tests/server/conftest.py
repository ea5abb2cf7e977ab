"""Shared by the server's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.subjects import random_adapter
from tests.engine_options import exact_options
from tests.server.registries import Counting
from tests.tiny_models import AddedBase
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.tokenizer import Tokenizer
from weft_server.torch_engine.engine import TorchEngine


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base: Callable[..., AddedBase]) -> Tokenizer:
    """The tokenizer of a tiny base."""
    return Tokenizer(tiny_base().stored.tokenizer_dir)


@pytest.fixture
def registry(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> Iterator[Counting]:
    """Three LoRA adapters, test/a0 to test/a2, and a prefix, test/p."""
    spec = tiny_base().stored.spec
    registry = Counting(Home(tmp_path / "home"))
    for seed, name in enumerate(("a0", "a1", "a2", "p")):
        kind = "prefix" if name == "p" else "lora"
        random_adapter(kind, spec, seed).write(tmp_path / name, spec, f"test/{name}")
        push(registry, tmp_path / name, AdapterName("test", name))
    yield registry
    registry.close()


@pytest.fixture
def engine(tiny_base: Callable[..., AddedBase]) -> Iterator[TorchEngine]:
    """A started engine over a tiny base, whose events nobody reads."""
    engine = TorchEngine(tiny_base().stored, exact_options(max_waiting=8))
    engine.start(lambda events: None)
    yield engine
    engine.close()
