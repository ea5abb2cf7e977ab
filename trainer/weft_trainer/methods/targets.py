"""Which linear modules a low-rank adapter sits on: options in people's words become full names. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.ia3 import Ia3Params
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.names import nearest
from weft_trainer.config.adapter import ALL, LowRankOptions
from weft_trainer.config.strict import ConfigError

ValueT = TypeVar("ValueT")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_TOP = re.compile(r"top:(\d+)")


def resolve(options: LowRankOptions, base: BaseSpec, *, pooled: int = 1) -> LowRankParams:
    """The parameters at this base, where A reads sums of `pooled` inputs each. Raises `ConfigError` naming what matches
    no module, and a rank that is over a module's size."""
    modules = choose(options.target_modules, options.layers, base)
    params = LowRankParams(
        r=options.r,
        alpha=options.alpha,
        use_rslora=options.use_rslora,
        target_modules=modules,
        rank_pattern=_pattern(options.rank_pattern, modules, "adapter.rank_pattern", base),
        alpha_pattern=_pattern(options.alpha_pattern, modules, "adapter.alpha_pattern", base),
    )
    for module in modules:
        n_out, n_in = base.linears[module]
        most = min(n_out, n_in // pooled)
        if params.rank(module) > most:
            groups = f" in {n_in // pooled} groups of {pooled}, of each of which A reads the sum" if pooled > 1 else ""
            raise ConfigError(
                _rank_key(options, module),
                f"rank {params.rank(module)}, but {module} has {n_out} outputs and {n_in} inputs{groups}: B A has at "
                f"most {most} ranks there; lower it, or give that module a rank of its own in adapter.rank_pattern",
            )
    return params


def choose(targets: tuple[str, ...], layers: str | tuple[int, ...], base: BaseSpec) -> tuple[str, ...]:
    """The full names that `adapter.target_modules` and `adapter.layers` mean, in the base's order. Raises
    `InvalidInputError` naming what matches no module."""
    chosen = chosen_layers(layers, base.num_layers)
    for target in targets:
        if target != ALL and not any(_is(module, target) for module in base.linears):
            raise ConfigError("adapter.target_modules", f"{target!r} is {_no_such(target, base.linears)}")
    modules = tuple(
        module
        for module in base.linears
        if _layer(module) in chosen and any(target == ALL or _is(module, target) for target in targets)
    )
    if not modules:
        raise ConfigError(
            "adapter.target_modules",
            f"{list(targets)} and adapter.layers {layers!r} have no module in common; widen one of the two",
        )
    return modules


def among(names: tuple[str, ...], modules: tuple[str, ...], field: str, base: BaseSpec) -> tuple[str, ...]:
    """Those of the adapted `modules` that `names` mean, likewise. Raises `InvalidInputError` naming `field`."""
    for name in names:
        if not any(_is(module, name) for module in modules):
            raise ConfigError(field, f"{name!r} is {_no_such(name, modules)}")
    return tuple(module for module in modules if any(_is(module, name) for name in names))


def lowest_layer(params: LowRankParams | Ia3Params) -> int:
    """The first layer that the adapter touches: everything below it is the base alone."""
    return min(_layer(module) for module in params.target_modules)


def _layer(module: str) -> int:
    match = _LAYER.search(module)
    return int(match[1]) if match else 0


def chosen_layers(layers: str | tuple[int, ...], count: int) -> frozenset[int]:
    """The layers that an option `layers` means. Raises `InvalidInputError`."""
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
            raise ConfigError(f"{field}.{target}", _no_such(target, modules))
        found.update(dict.fromkeys(hits, given[target]))
    return found


def _rank_key(options: LowRankOptions, module: str) -> str:
    """The key that says a module's rank."""
    keys = [target for target in options.rank_pattern if _is(module, target)]
    return f"adapter.rank_pattern.{max(keys, key=len)}" if keys else "adapter.r"


def _no_such(target: str, modules: Collection[str]) -> str:
    parts = sorted({module.rpartition(".")[2] for module in modules})
    near = nearest(target, [*parts, *modules], most=1)
    hint = f"did you mean {near[0]!r}?" if near else f"last parts are {', '.join(parts)}"
    return f"no linear module among those adapted; {hint}"
