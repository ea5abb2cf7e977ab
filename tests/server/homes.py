"""Homes that a server can be started in."""

import shutil

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

KINDS = ("lora", "qalora", "prefix")


def prepare(home: Home, base: AddedBase) -> None:
    """A home with the base and one published adapter of each kind."""
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    registry = EmbeddedRegistry(home)
    for seed, kind in enumerate(KINDS):
        directory = home.root / "artifacts" / kind
        random_adapter(kind, base.stored.spec, seed, strength=0.3).write(directory, base.stored.spec, f"test/{kind}")
        push(registry, directory, AdapterName("test", kind), tags=("v1",), aliases=("production",))
    registry.close()
