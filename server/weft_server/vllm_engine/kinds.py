"""How the vLLM engine serves each adapter kind: one table. A kind that is not in it is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weft_adapters.kinds.kind import Adapter
from weft_registry.errors import UnsupportedError

LowRank = dict[str, tuple[Tensor, Tensor]]
"""(A (r, in), B (out, r)) in float32 by module, the scaling in B: what a vLLM slot holds. `in` counts groups for an A
over pooled inputs."""


@dataclass(frozen=True)
class Served:
    """How one kind is served."""

    low_rank: Callable[[Adapter[Any]], LowRank] | None
    """As it is in a slot; None for a prefix, which `prefix_connector` writes into the cache, and for a soft prompt."""
    note: str = ""
    """What a person should know about it; said once at start-up."""
    expanded: Callable[[Adapter[Any]], LowRank] | None = None
    """Of a kind that reads pooled inputs: as a LoRA, for an engine whose slots have no A for them."""
    expanded_note: str = ""
    """What is said then."""
    soft: bool = False
    """Whether it is a soft prompt, which its requests carry: see `soft_prompts`."""

    def factors(self, adapter: Adapter[Any], *, pooled: bool) -> LowRank | None:
        """The adapter as an engine's slots hold it, with or without an A for `pooled` inputs; None where it takes no
        slot."""
        how = self.low_rank if pooled or self.expanded is None else self.expanded
        return None if how is None else how(adapter)

    def reads_whole(self, *, pooled: bool) -> bool:
        """Whether it takes an A for whole inputs there."""
        return self.low_rank is not None and not (pooled and self.expanded is not None)


def _lora(adapter: Adapter[Any]) -> LowRank:
    factors: LowRank = {}
    for module in adapter.params.target_modules:
        found = adapter.kind.factors(adapter, module)
        assert found is not None, module
        factors[module] = (found.a_rK.float(), found.b_Nr.float() * found.scaling)
    return factors


def _expanded(adapter: Adapter[Any]) -> LowRank:
    """`B A pool(x)` with a pool that sums is `B A' x`, each column of A repeated for every input of its group."""
    group = adapter.params.group_size
    return {module: (a_rG.repeat_interleave(group, dim=1), b_Nr) for module, (a_rG, b_Nr) in _lora(adapter).items()}


SERVED: Mapping[str, Served] = {
    "lora": Served(_lora),
    "qalora": Served(
        _lora,
        "served on pooled inputs, in slots whose A is a group's size narrower than LoRA's",
        expanded=_expanded,
        expanded_note="served as LoRA with A repeated over each group: the same numbers, a wider A",
    ),
    "prefix": Served(None),
    "prompt": Served(None, soft=True),
}


def served(kind: str) -> Served:
    """How `kind` is served. Raises `UnsupportedError` naming it."""
    found = SERVED.get(kind)
    if found is None:
        raise UnsupportedError(
            f"the vllm engine does not serve adapters of the kind {kind!r}; it serves {', '.join(SERVED)}: use "
            "--engine torch for the others",
            reason="UNSUPPORTED_KIND",
            metadata={"kind": kind, "engine": "vllm"},
        )
    return found
