"""Which linear modules a low-rank adapter sits on: options in people's words become full names. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.names import nearest
from weft_trainer.options import ALL, LowRankOptions

ValueT = TypeVar("ValueT")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_TOP = re.compile(r"top:(\d+)")


def resolve(options: LowRankOptions, base: BaseSpec) -> LowRankParams:
    """The parameters at this base. Raises `InvalidInputError` naming what matches no module."""
    layers = _layers(options.layers, base.num_layers)
    for target in options.target_modules:
        if target != ALL and not any(_is(module, target) for module in base.linears):
            raise InvalidInputError(_no_such("adapter.target_modules", target, base))
    modules = tuple(
        module
        for module in base.linears
        if _layer(module) in layers and any(target == ALL or _is(module, target) for target in options.target_modules)
    )
    if not modules:
        raise InvalidInputError(
            f"adapter.target_modules {list(options.target_modules)} and adapter.layers {options.layers!r} have no "
            "module in common"
        )
    return LowRankParams(
        r=options.r,
        alpha=options.alpha,
        use_rslora=options.use_rslora,
        target_modules=modules,
        rank_pattern=_pattern(options.rank_pattern, modules, "adapter.rank_pattern", base),
        alpha_pattern=_pattern(options.alpha_pattern, modules, "adapter.alpha_pattern", base),
    )


def lowest_layer(params: LowRankParams) -> int:
    """The first layer that the adapter touches: everything below it is the base alone."""
    return min(_layer(module) for module in params.target_modules)


def _layer(module: str) -> int:
    match = _LAYER.search(module)
    return int(match[1]) if match else 0


def _layers(layers: str | tuple[int, ...], count: int) -> frozenset[int]:
    if layers == ALL:
        return frozenset(range(count))
    if isinstance(layers, str):
        top = _TOP.fullmatch(layers)
        if top is None or not 1 <= int(top[1]) <= count:
            raise InvalidInputError(
                f'adapter.layers: {layers!r}; expected "all", "top:N" with N from 1 to {count}, or a list of indices'
            )
        return frozenset(range(count - int(top[1]), count))
    outside = [layer for layer in layers if not 0 <= layer < count]
    if outside:
        raise InvalidInputError(f"adapter.layers: no layer {outside[0]}; this base has 0 to {count - 1}")
    return frozenset(layers)


def _is(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _pattern(given: Mapping[str, ValueT], modules: tuple[str, ...], field: str, base: BaseSpec) -> dict[str, ValueT]:
    found: dict[str, ValueT] = {}
    # Shortest first: a more exact name overrides a last part.
    for target in sorted(given, key=len):
        hits = [module for module in modules if _is(module, target)]
        if not hits:
            raise InvalidInputError(_no_such(field, target, base))
        found.update(dict.fromkeys(hits, given[target]))
    return found


def _no_such(field: str, target: str, base: BaseSpec) -> str:
    parts = sorted({module.rpartition(".")[2] for module in base.linears})
    near = nearest(target, [*parts, *base.linears], most=1)
    hint = f"did you mean {near[0]!r}?" if near else f"last parts are {', '.join(parts)}"
    return f"{field}: {target!r} is no linear module among those adapted; {hint}"
