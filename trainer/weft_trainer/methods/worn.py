"""A stored base as a model that computes: alone, wearing an artifact, or with the artifact merged into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.binding import bind
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter
from weft_adapters.processor import fast_dtype
from weft_registry import artifact
from weft_registry.base import BaseStore
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.home import Home
from weft_registry.parts import parts_of
from weft_trainer.methods import method_of_kind, over
from weft_trainer.methods.bottleneck import BottleneckMethod
from weft_trainer.methods.parts import STACK, WEAR_FUSED, Part, find_parts, stacked_on
from weft_trainer.modeling.adapted import AdaptedModel, BareModel
from weft_trainer.modeling.base import build

INSTEAD = "nothing computes with a yanked adapter; choose another adapter than the one that lies on it"
"""What to do where an adapter lies on one that is yanked, and whoever asks cannot say what it lies on."""


def open_base(name: str, home: Home | None = None) -> StoredBase:
    """The stored base of that name. Raises `NotFoundError` naming the ones there are."""
    store = BaseStore((home or Home.from_environment()).bases)
    store.get(name)
    return StoredBase.open(store.path(name))


def base_of(directory: Path, base: str | None, home: Home) -> StoredBase:
    """The base of an artifact: the one named, or the stored one whose weights its manifest names."""
    if base is not None:
        return open_base(base, home)
    wanted = artifact.read(directory).base
    found = BaseStore(home.bases).by_weights(wanted.weights_sha256)
    if found is None:
        raise NotFoundError(
            f"the base {wanted.id} with weights {wanted.weights_sha256} is not here; add it with `weft base add`",
            reason="BASE_NOT_FOUND",
        )
    return open_base(found[0], home)


def wear(
    stored: StoredBase,
    directory: Path | None,
    dtype: torch.dtype | None,
    home: Home,
    *,
    merged: bool = False,
    device: torch.device | None = None,
    stack_on: Sequence[str] | None = None,
    instead: str = INSTEAD,
) -> AdaptedModel:
    """The base with the artifact in `directory` (None: alone), ready to evaluate; `device` None is a GPU if there is
    one, and `dtype` None what is fastest there. `stack_on` are the adapters that lie below a bottleneck adapter; None:
    those that it was trained on; `instead` as `bound` has it. Raises what binding raises, and merging if it is asked
    for."""
    where = device or default_device()
    dtype = dtype or fast_dtype(where)
    if directory is None:
        model: AdaptedModel = BareModel(build(stored, dtype, device=where))
    elif merged:
        model = _merged(directory, stored, dtype, home, where)
    else:
        model = _adapted(directory, stored, dtype, home, where, stack_on, instead)
    return model.eval()


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bound(
    directory: Path,
    stored: StoredBase,
    home: Home,
    stack_on: Sequence[str] | None = None,
    instead: str = INSTEAD,
) -> tuple[Adapter[Any], Sequence[Part]]:
    """The adapter in `directory` and what it was trained over, or `stack_on` instead of what it was stacked on;
    `instead` says what to do where that is yanked. Binding checks the base and every tensor; float32 because these are
    the master weights. Raises what `bind` and `find_parts` raise."""
    manifest = artifact.read(directory)
    parts = find_parts([str(part) for part in parts_of(manifest)], stored.spec, home, WEAR_FUSED)
    adapter = bind(directory, manifest, stored.spec, dtype=torch.float32, parts=[part.adapter for part in parts])
    if stack_on and adapter.kind.name != BottleneckMethod.kind:
        raise InvalidInputError(
            f"stack_on: {manifest.name} is of the kind {adapter.kind.name}; only bottleneck adapters lie on others, so "
            "leave it out"
        )
    names = stacked_on(manifest.kind, manifest.provenance) if stack_on is None else stack_on
    purpose = replace(STACK, where="stack_on", yanked=instead)
    return adapter, [*parts, *find_parts(names, stored.spec, home, purpose)]


def _adapted(
    directory: Path,
    stored: StoredBase,
    dtype: torch.dtype,
    home: Home,
    device: torch.device,
    stack_on: Sequence[str] | None,
    instead: str,
) -> AdaptedModel:
    adapter, parts = bound(directory, stored, home, stack_on, instead)
    method = over(method_of_kind(adapter.kind.name), parts)
    model = method.bare(build(stored, dtype, device=device), adapter.params)
    model.restore(adapter.tensors)
    return model


def _merged(directory: Path, stored: StoredBase, dtype: torch.dtype, home: Home, device: torch.device) -> AdaptedModel:
    adapter, _ = bound(directory, stored, home)
    found = {module: adapter.kind.overlay(module, stored.int4(module), adapter) for module in stored.spec.linears}
    overlays: Mapping[str, Int4Weight | Tensor] = {m: weight for m, weight in found.items() if weight is not None}
    stored_biases = {module: bias for module in overlays if (bias := stored.bias(module)) is not None}
    biases = {module: adapter.kind.overlay_bias(module, bias, adapter) for module, bias in stored_biases.items()}
    return BareModel(build(stored, dtype, overlays=overlays, biases=biases, device=device))
