"""Which engine a server runs: the one place that knows their names. Importing it imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from weft_adapters.base.load import StoredBase
from weft_registry.errors import UnsupportedError
from weft_server.engine import Engine
from weft_server.memory_plan import MemoryPlan
from weft_server.options import ServeOptions


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that is loaded and not yet started."""

    engine: Engine
    plan: MemoryPlan
    """Where the server's memory goes."""
    about: str
    """How it computes, for the person who started it."""


class Build(Protocol):
    """`build` of an engine's `factory`."""

    def __call__(self, options: ServeOptions, base: StoredBase) -> BuiltEngine:
        """Loads the base as the options say. Slow: call it from a worker thread.

        Raises `InvalidInputError` for a setting that means nothing or that this engine would not heed,
        `NotEnoughMemoryError` for a budget that is too small, and `UnsupportedError` for what cannot be here.
        """
        ...


FACTORIES: Mapping[str, str] = {
    "torch": "weft_server.torch_engine.factory",
    "vllm": "weft_server.vllm_engine.factory",
}
"""The module that builds each engine; its imports are the engine's."""


def engine_builder(name: str) -> Build:
    """What builds the engine of that name. Raises `UnsupportedError` for a name that there is not."""
    if name not in FACTORIES:
        raise UnsupportedError(f"--engine {name}: this Weft has the engines {' and '.join(FACTORIES)}")
    build: Build = import_module(FACTORIES[name]).build
    return build
