"""Homes for real servers: the benchmark's base, and as many published adapters as wanted.

Publishing a thousand adapters takes most of a minute, so it is done once and kept; every server then gets a home of its
own whose blobs, which nobody ever changes, are links to those.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.subjects import BASE_NAME, RandomAdapter, benchmark_home, random_adapter
from weft_registry.base import BaseSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

_NAMESPACE = "bench"


@dataclass(frozen=True)
class Catalog:
    """What is registered in a home."""

    small: int
    """Adapters of rank 4 on the query and value projections: a quarter to half a megabyte each."""
    large: int = 0
    """Adapters of rank 8 on all linears, ten times the size: what loading costs at its worst."""

    @property
    def small_names(self) -> list[str]:
        """The references of the small ones."""
        return [f"{_NAMESPACE}/small-{index}" for index in range(self.small)]

    @property
    def large_names(self) -> list[str]:
        """The references of the large ones."""
        return [f"{_NAMESPACE}/large-{index}" for index in range(self.large)]


def make_home(root: Path, spec: BaseSpec, catalog: Catalog) -> Home:
    """A home at `root` with the benchmark's base and these adapters, LoRA and QA-LoRA in turns.

    `root` must be on the file system of the benchmark's own home.
    """
    kept = benchmark_home().cache / f"registry-{spec.fingerprint.weights_sha256[-12:]}-{catalog.small}-{catalog.large}"
    if not kept.is_dir():
        print(f"publishing {catalog.small + catalog.large} adapters, once", file=sys.stderr)
        partial = kept.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _publish(Home(partial), spec, catalog)
        partial.rename(kept)
    home = Home(root)
    home.bases.mkdir(parents=True)
    (home.bases / BASE_NAME).symlink_to(benchmark_home().bases / BASE_NAME)
    shutil.copytree(Home(kept).registry, home.registry, copy_function=_link_or_copy)
    return home


def _link_or_copy(source: str, target: str) -> None:
    if Path(source).name.startswith("catalog.db"):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def _publish(home: Home, spec: BaseSpec, catalog: Catalog) -> None:
    registry = EmbeddedRegistry(home)
    for name, adapter in _adapters(spec, catalog):
        path = home.root / "artifact"
        # Half the bytes, and what a trainer would save.
        halved = {key: tensor.to(torch.bfloat16) for key, tensor in adapter.tensors.items()}
        replace(adapter, tensors=halved).write(path, spec, name)
        push(registry, path, AdapterName(*name.split("/")))
        shutil.rmtree(path)
    registry.close()


def _adapters(spec: BaseSpec, catalog: Catalog) -> Iterable[tuple[str, RandomAdapter]]:
    targets = [name for name in spec.linears if name.endswith(("q_proj", "v_proj"))]
    for seed, name in enumerate(catalog.small_names):
        yield name, random_adapter(_kind(seed), spec, seed, rank=4, targets=targets)
    for seed, name in enumerate(catalog.large_names):
        yield name, random_adapter(_kind(seed), spec, seed)


def _kind(seed: int) -> str:
    return "qalora" if seed % 2 else "lora"
