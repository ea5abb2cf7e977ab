"""Merged weights on their way to vLLM's workers: computed here by the adapter's kind, written to a file, read there.

The minima are those that the torch engine computes, to the bit: both take them from the kind's `overlay`. A file, and
not the message itself, because every worker reads only its own slices of it, from the page cache. Knows no vLLM.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.base.writer import SafetensorsWriter
from weft_adapters.binding import bind
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, MergeRefusedError
from weft_registry.manifest import Manifest
from weft_server.torch_engine.sites import decoder_sites
from weft_server.vllm_engine.base.names import DENSE, ZERO


@dataclass(frozen=True)
class MergeFile:
    """One adapter's merged weights, ready for `weft_merge`."""

    path: Path
    digest: str
    """The adapter's."""
    fingerprint: str
    """The weights' digest of the base that it belongs over."""
    dense: bool
    """Whether it holds dense weights (LoRA) and not zeros (QA-LoRA)."""
    size_bytes: int

    @property
    def arguments(self) -> tuple[str, str, str]:
        """What `collective_rpc("weft_merge", args=...)` is given."""
        return str(self.path), self.digest, self.fingerprint


@contextmanager
def merge_file(
    directory: Path,
    manifest: Manifest,
    base: StoredBase,
    scratch: Path,
    *,
    dtype: torch.dtype = torch.float32,
    digest: str = "",
) -> Iterator[MergeFile]:
    """The merge file of the artifact in `directory`, for as long as the block lasts.

    `dtype` is the engine's: that of bound adapters and of dense weights; minima are float32 always. Raises as `bind`
    and `Kind.overlay` do: `MergeRefusedError` for a kind or an adapter that cannot be merged.
    """
    adapter = bind(directory, manifest, base.spec, dtype=dtype, digest=digest)
    with adapter_merge_file(adapter, base, scratch, dtype=dtype) as file:
        yield file


@contextmanager
def adapter_merge_file(
    adapter: Adapter[Any], base: StoredBase, scratch: Path, *, dtype: torch.dtype = torch.float32
) -> Iterator[MergeFile]:
    """As `merge_file`, of an adapter that is bound already."""
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"merge-{secrets.token_hex(8)}.safetensors"
    try:
        yield _write(adapter, base, path, dtype)
    finally:
        path.unlink(missing_ok=True)
        base.release()


def merge_bytes(base: StoredBase, dtype: torch.dtype, *, dense: bool) -> int:
    """Bytes that a merge of every module holds beside the base, over all workers: the pristine zeros on the host, or
    for a dense merge the dense weights where the base is."""
    group_size = base.spec.fingerprint.quant.group_size
    weights = sum(n_out * n_in for n_out, n_in in base.spec.linears.values())
    return weights * dtype.itemsize if dense else weights // group_size * dtype.itemsize


def _write(adapter: Adapter[Any], base: StoredBase, path: Path, dtype: torch.dtype) -> MergeFile:
    touched, dense = _touched(adapter, base)
    plan: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for module in touched:
        n_out, n_in = base.spec.linears[module]
        if dense:
            plan[module + DENSE] = (dtype, (n_out, n_in))
        else:
            plan[module + ZERO] = (torch.float32, (n_out, n_in // base.spec.fingerprint.quant.group_size))
    with SafetensorsWriter(path, plan) as writer:
        for module in touched:
            before = base.int4(module)
            after = adapter.kind.overlay(module, before, adapter)
            weight = before if after is None else after
            if dense:
                writer.add(module + DENSE, _dense(weight).to(dtype))
            else:
                assert isinstance(weight, Int4Weight)
                writer.add(module + ZERO, weight.minimum_NG.float() + 8 * weight.scale_NG.float())
    fingerprint = base.spec.fingerprint.weights_sha256
    return MergeFile(path, adapter.digest, fingerprint, dense, path.stat().st_size)


def _touched(adapter: Adapter[Any], base: StoredBase) -> tuple[list[str], bool]:
    """The modules to write, and whether densely: those that the adapter changes, and those that engines fuse with them,
    for a fused layer is replaced whole."""
    sites = [site.modules for index in range(base.spec.num_layers) for site in decoder_sites(base.spec, index)]
    changed = [name for site in sites for name in site if _changes(adapter, base, name)]
    if not changed:
        raise MergeRefusedError(f"adapter {adapter.digest} changes no weight of the base: there is nothing to merge")
    first = adapter.kind.overlay(changed[0], base.int4(changed[0]), adapter)
    together = {name for site in sites if set(changed).intersection(site) for name in site}
    return [name for name in base.spec.linears if name in together], isinstance(first, Tensor)


def _changes(adapter: Adapter[Any], base: StoredBase, module: str) -> bool:
    if adapter.kind.low_rank:
        return adapter.kind.factors(adapter, module) is not None
    return adapter.kind.overlay(module, base.int4(module), adapter) is not None


def _dense(weight: Int4Weight | Tensor) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.dequantize()
