"""What the AdapterHub library is asked: a tiny Llama, bottleneck adapters over it, and ways to combine them.

Every number is made from a hash of its tensor's name, so that two environments that share no package but numpy have the
same model: the library's, where `adapterhub.py` computes the expected logits, and Weft's, where the tests do. The
linear weights lie on a grid of 16 steps in groups of 32, so that quantizing them to int4 changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

EXPECTED = Path(__file__).with_name("adapterhub.safetensors")
SAVED = Path(__file__).with_name("adapterhub_saved.json")
HIDDEN, LAYERS, GROUP = 64, 2, 32
CONFIG: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
TOKENS = (5, 9, 200, 31, 77, 8, 499)
SHOWN = 48
"""Of every position's logits the first so many are kept: enough to tell, and a file of few kilobytes."""

_LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}


@dataclass(frozen=True)
class HubAdapter:
    """One adapter as the library's `BnConfig` has it, and the same in the words of Weft's manifest."""

    config: Mapping[str, Any]
    """What is given to `BnConfig`."""
    reads: str
    places: tuple[str, ...]

    @property
    def size(self) -> int:
        """The bottleneck."""
        return HIDDEN // int(self.config["reduction_factor"])

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that have it."""
        return tuple(layer for layer in range(LAYERS) if layer not in self.config.get("leave_out", ()))


def _houlsby(**changes: Any) -> HubAdapter:
    """The library's `DoubleSeqBnConfig`."""
    defaults = {"mh_adapter": True, "output_adapter": True, "reduction_factor": 16, "non_linearity": "swish"}
    return HubAdapter({**defaults, **changes}, "output", ("attention", "mlp"))


def _pfeiffer(**changes: Any) -> HubAdapter:
    """The library's `SeqBnConfig`."""
    defaults = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu"}
    return HubAdapter({**defaults, "original_ln_before": True, **changes}, "sum", ("mlp",))


def _parallel(**changes: Any) -> HubAdapter:
    """The library's `ParBnConfig`."""
    defaults = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 2, "non_linearity": "relu"}
    parallel = {"init_weights": "mam_adapter", "is_parallel": True, "scaling": 4.0}
    return HubAdapter({**defaults, **parallel, **changes}, "residual", ("mlp",))


ADAPTERS: Mapping[str, HubAdapter] = {
    "houlsby": _houlsby(),
    "pfeiffer": _pfeiffer(),
    "parallel": _parallel(),
    "gelu": _pfeiffer(non_linearity="gelu", reduction_factor=8, scaling=0.5),
    "tanh": _houlsby(non_linearity="tanh", reduction_factor=21, leave_out=[0]),
    "gelu_new": _pfeiffer(non_linearity="gelu_new"),
    "leakyrelu": _parallel(non_linearity="leakyrelu", scaling=1.0, mh_adapter=False, leave_out=[1]),
    "silu": _houlsby(non_linearity="silu", reduction_factor=8),
    "tanh2": _pfeiffer(non_linearity="tanh", reduction_factor=4),
}


@dataclass(frozen=True)
class Case:
    """One answer that is compared: one adapter, a stack of adapters in order, or a fusion of them."""

    adapters: tuple[str, ...]
    fusion: str = field(default="")
    """The library's name of the fusion's configuration: "dynamic" has a value matrix, "static" has none."""


CASES: Mapping[str, Case] = {
    **{name: Case((name,)) for name in ADAPTERS},
    "stack of language and task": Case(("gelu", "pfeiffer")),
    "stack of three": Case(("houlsby", "tanh2", "tanh")),
    "dynamic fusion": Case(("pfeiffer", "gelu", "tanh2"), "dynamic"),
    "static fusion": Case(("houlsby", "silu"), "static"),
}


def base_tensors() -> dict[str, Array]:
    """The model's state, by transformers' names."""
    tensors = {"model.embed_tokens.weight": spread("model.embed_tokens.weight", (512, HIDDEN), 0.8)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = 1 + spread(f"{at}{norm}", (HIDDEN,), 0.2)
        for name, shape in _LINEARS.items():
            tensors[f"{at}{name}.weight"] = _on_grid(f"{at}{name}", shape)
    tensors["model.norm.weight"] = 1 + spread("model.norm", (HIDDEN,), 0.2)
    return tensors


def adapter_tensors(name: str) -> dict[str, Array]:
    """An adapter's tensors, by the names in Weft's artifacts."""
    adapter, tensors = ADAPTERS[name], {}
    shapes = {
        "adapter_down.weight": (adapter.size, HIDDEN),
        "adapter_down.bias": (adapter.size,),
        "adapter_up.weight": (HIDDEN, adapter.size),
        "adapter_up.bias": (HIDDEN,),
    }
    for layer in adapter.layers:
        for place in adapter.places:
            for tensor, shape in shapes.items():
                key = f"model.layers.{layer}.{place}.{tensor}"
                tensors[key] = spread(f"{name} {key}", shape, 0.3)
    return tensors


def fusion_tensors(name: str) -> dict[str, Array]:
    """A fusion's tensors, by the names in Weft's artifacts."""
    case, tensors = CASES[name], {}
    first = ADAPTERS[case.adapters[0]]
    for layer in first.layers:
        for place in first.places:
            at = f"model.layers.{layer}.{place}."
            for side in ("query", "key"):
                tensors[f"{at}{side}.weight"] = spread(f"{name} {at}{side}", (HIDDEN, HIDDEN), 0.2)
                tensors[f"{at}{side}.bias"] = spread(f"{name} {at}{side} bias", (HIDDEN,), 0.2)
            if case.fusion == "dynamic":
                noise = spread(f"{name} {at}value", (HIDDEN, HIDDEN), 0.1)
                tensors[f"{at}value.weight"] = noise + np.eye(HIDDEN, dtype=np.float32)
    return tensors


def _bytes(name: str, count: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(count), np.uint8)


def spread(name: str, shape: tuple[int, ...], width: float) -> Array:
    """Numbers from -width to width."""
    flat = (_bytes(name, int(np.prod(shape))).astype(np.float32) - 127.5) * np.float32(width / 127.5)
    return flat.reshape(shape).astype(np.float32)


def _on_grid(name: str, shape: tuple[int, int]) -> Array:
    codes = (_bytes(name, shape[0] * shape[1]) & 15).astype(np.float32).reshape(shape[0], -1, GROUP)
    # The ends of the grid occur in every group, so that its scale and minimum are found again exactly.
    codes[:, :, 0], codes[:, :, 1] = 0, 15
    return ((codes - 8) / 64).reshape(shape).astype(np.float32)
