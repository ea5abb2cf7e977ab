"""Adapters as vLLM holds them, written once where its workers read them: low-rank factors as a LoRA's, or a prefix's
tensors. Of a soft prompt there is nothing to write: its requests carry it.

The directory's name and the name that vLLM knows the adapter by are its digest: vLLM puts both into the keys of its
prefix cache, so that nothing computed under one version is read under another.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weft_adapters.binding import bind, check_base
from weft_adapters.kinds.kind import Adapter
from weft_registry.base import BaseSpec
from weft_registry.errors import UnsupportedError
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_registry.manifest import Manifest
from weft_server.vllm_engine.kinds import LowRank, served
from weft_server.vllm_engine.prefix_request import PrefixAdapter, prefix_adapter
from weft_server.vllm_engine.soft_prompts import SoftPrompt, soft_prompt


@dataclass(frozen=True, eq=False)
class VllmAdapter:
    """Implements `weft_server.engine.AdapterHandle`."""

    digest: str
    size_bytes: int
    """Of its weights in the worker's memory, at their own rank; the slots that they are copied into are counted once
    for the engine."""
    bound: Adapter[Any]
    """As every engine binds it, in float32: what merging reads."""
    directory: Path
    lora_id: int | None
    """Never used twice by an engine: workers keep what they have read under it. None for a prefix and a soft prompt."""
    prefix: PrefixAdapter | None = None
    soft: SoftPrompt | None = None
    reads_whole: bool = False
    """Whether it needs a slot with an A for whole inputs."""

    @property
    def num_virtual(self) -> int:
        """Tokens of the context that it takes."""
        if self.soft is not None:
            return int(self.soft.rows_PD.shape[0])
        return 0 if self.prefix is None else self.prefix.num_virtual_tokens


class AdapterFiles:
    """Owns the directories of bound adapters, under one of its own. Any thread may call it."""

    def __init__(
        self,
        directory: Path,
        base: BaseSpec,
        *,
        max_rank: int,
        modules: frozenset[str],
        dtype: torch.dtype,
        pooled: bool,
    ):
        """`modules`: the linear modules that vLLM wraps; `dtype`: what the engine computes in; `pooled`:
        whether slots have an A for pooled inputs."""
        self._directory = directory
        self._base = base
        self._max_rank = max_rank
        self._modules = modules
        self._dtype = dtype
        self._pooled = pooled
        self._ids = itertools.count(1)

    def bind(self, directory: Path, manifest: Manifest, digest: str) -> VllmAdapter:
        """Reads and verifies an artifact, and writes what vLLM loads.

        Raises `UnsupportedError` for a kind, a rank or a module that vLLM cannot serve, and what
        `weft_adapters.binding.bind` raises.
        """
        check_base(manifest, self._base)
        kind = served(manifest.kind)
        adapter = bind(directory, manifest, self._base, dtype=torch.float32, digest=digest)
        rows_PD = adapter.kind.soft_prompt(adapter) if kind.soft else None
        if rows_PD is not None:
            _, target = self._place(digest)
            soft = soft_prompt(digest, rows_PD, self._base.hidden_size, self._dtype)
            return VllmAdapter(digest, soft.rows_PD.nbytes, adapter, target, None, soft=soft)
        if kind.low_rank is None:
            # A copy: the workers read nothing outside of this directory.
            _, target = self._place(digest)
            shutil.copytree(directory, target)
            return VllmAdapter(
                digest, adapter.size_bytes, adapter, target, None, prefix_adapter(target, manifest, digest)
            )
        return self._slotted(adapter, repr(manifest.name))

    def compose(self, parts: Sequence[tuple[VllmAdapter, float]], digest: str) -> VllmAdapter:
        """Several adapters as one, written likewise. Raises as `bind` does, and as `Kind.compose`."""
        bound = [(part.bound, weight) for part, weight in parts]
        return self._slotted(
            bound[0][0].kind.compose(bound, digest), "composed of " + ", ".join(p.digest for p, _ in bound)
        )

    def _slotted(self, adapter: Adapter[Any], name: str) -> VllmAdapter:
        """An adapter as a slot takes it, written; `name` is for messages."""
        kind = served(adapter.kind.name)
        factors = kind.factors(adapter, pooled=self._pooled)
        assert factors is not None, adapter.kind.name
        self._check(name, factors)
        number, target = self._place(adapter.digest)
        _write(target, factors)
        size_bytes = self._dtype.itemsize * sum(a.numel() + b.numel() for a, b in factors.values())
        whole = kind.reads_whole(pooled=self._pooled)
        return VllmAdapter(adapter.digest, size_bytes, adapter, target, number, reads_whole=whole)

    def _place(self, digest: str) -> tuple[int, Path]:
        """A number that none had before, and a directory that none has."""
        number = next(self._ids)
        return number, self._directory / f"{number}-{digest.replace(':', '-')}"

    def remove(self, adapter: VllmAdapter) -> None:
        """Removes an adapter's files: from now on its workers cannot read it again."""
        shutil.rmtree(adapter.directory, ignore_errors=True)

    def close(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _check(self, name: str, factors: LowRank) -> None:
        rank, module = max((a_rK.shape[0], module) for module, (a_rK, _) in factors.items())
        if rank > self._max_rank:
            raise UnsupportedError(
                f"adapter {name} has rank {rank} at {module}, and this engine's slots hold "
                f"{self._max_rank}: start the server with --vllm max_lora_rank=N, N at least {rank}",
                reason="LORA_RANK",
                metadata={"rank": str(rank), "max_lora_rank": str(self._max_rank)},
            )
        outside = sorted(factors.keys() - self._modules)
        if outside:
            raise UnsupportedError(
                f"adapter {name} adapts {outside[0]}"
                + (f" and {len(outside) - 1} more modules" if outside[1:] else "")
                + ", which vLLM does not wrap in this model (see --vllm lora_target_modules)",
                reason="LORA_MODULE",
                metadata={"modules": ",".join(outside[:16])},
            )


def _write(target: Path, factors: LowRank) -> None:
    """A PEFT directory whose scaling is 1 at every module: it is in B already."""
    target.mkdir(parents=True)
    tensors = {}
    for module, (a_rK, b_Nr) in factors.items():
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = a_rK.contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = b_Nr.contiguous()
    save_file(tensors, target / "adapter_model.safetensors")
    ranks = {module: a_rK.shape[0] for module, (a_rK, _) in factors.items()}
    most = max(ranks.values())
    # Patterns are regular expressions there.
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != most}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
    }
    (target / "adapter_config.json").write_text(json.dumps(config))
