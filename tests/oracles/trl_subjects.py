"""What TRL is asked about direct preference optimization: AdapterHub's tiny Llama, a LoRA over it, pairs of answers.

Made of hashes like `adapterhub_subjects`, so that it needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.oracles.adapterhub_subjects import CONFIG as CONFIG
from tests.oracles.adapterhub_subjects import HIDDEN, LAYERS, Array, spread
from tests.oracles.adapterhub_subjects import base_tensors as base_tensors

EXPECTED = Path(__file__).with_name("trl_dpo.json")
RANK, ALPHA = 4, 8
MODULES: Mapping[str, tuple[int, int]] = {"q_proj": (HIDDEN, HIDDEN), "v_proj": (HIDDEN // 2, HIDDEN)}
SHOWN = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
"""The parameter whose gradient is kept."""


@dataclass(frozen=True)
class Pair:
    """In tokens."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]


PAIRS = (
    Pair((5, 9, 200), (31, 77, 2), (8, 2)),
    Pair((4,), (90, 91, 2), (60, 61, 62, 63, 2)),
    Pair((300, 301, 302, 303), (7, 2), (400, 401, 402, 2)),
)


@dataclass(frozen=True)
class Case:
    """One loss that TRL is asked for."""

    beta: float
    pairs: tuple[Pair, ...]
    label_smoothing: float = 0.0
    """TRL smooths its loss "aot" only, which is DPO's where there is one pair: it sorts the batch."""


CASES = {
    "paper": Case(0.1, PAIRS),
    "strict": Case(0.5, PAIRS),
    "smoothed": Case(0.3, PAIRS[:1], label_smoothing=0.2),
}


def lora_tensors() -> dict[str, Array]:
    """The LoRA, by PEFT's names; B is not zero, so that the policy is not the reference."""
    tensors: dict[str, Array] = {}
    for layer in range(LAYERS):
        for module, (n_out, n_in) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = spread(f"{name}.lora_A", (RANK, n_in), 0.3)
            tensors[f"{name}.lora_B.weight"] = spread(f"{name}.lora_B", (n_out, RANK), 0.3)
    return tensors
