"""Which weights of the base a run trains: patterns in people's words become the names of tensors. No torch.

A pattern is a glob (`*`, `?`, `[0-9]`) over a tensor's name ("model.layers.0.mlp.up_proj.weight") or its module's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.names import nearest

EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_NORMS = ("input_layernorm", "post_attention_layernorm")


def carried(base: BaseSpec) -> list[str]:
    """The weights whose changes a LoRA can carry: every linear, and the norms before attention and MLP."""
    norms = [f"model.layers.{layer}.{norm}.weight" for layer in range(base.num_layers) for norm in _NORMS]
    return [*(f"{module}.weight" for module in base.linears), *norms]


def resolve(unfreeze: Sequence[str], freeze: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """The `names` that a pattern of `unfreeze` matches and none of `freeze` does, in their order.

    Raises `InvalidInputError` naming a pattern that matches nothing, with the nearest names, or when nothing is left.
    """
    names = list(names)
    chosen = _matched(names, unfreeze, "adapter.unfreeze")
    frozen = _matched(names, freeze, "adapter.freeze")
    found = tuple(name for name in names if name in chosen and name not in frozen)
    if not found:
        raise InvalidInputError("adapter.freeze: leaves nothing of adapter.unfreeze to train")
    return found


def _matched(names: list[str], patterns: Sequence[str], field: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if _matches(name, pattern)}
        if not hits:
            modules = [name.removesuffix(".weight") for name in names]
            near = nearest(pattern, [*modules, *sorted({module.rpartition(".")[2] for module in modules})])
            hint = f"nearest: {', '.join(near)}" if near else 'patterns are such as "model.layers.0.*" or "*.mlp.*"'
            raise InvalidInputError(f"{field}: {pattern!r} matches no weight of this base; {hint}")
        found |= hits
    return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
