"""Sorting the keys of a PEFT configuration: read, harmless, or refused. Nothing is ignored without being listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError

COMMON = frozenset(
    # `auto_mapping` and `task_type` are checked by `weft_registry.peft_format`.
    {"peft_type", "auto_mapping", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version"}
)

MAX_MODULE_CHARACTERS = 200
"""How long a module's name may be in a tensor's name."""


def check_keys(config: Mapping[str, Any], known: frozenset[str], refused: Mapping[str, str]) -> None:
    """Raises `InvalidInputError` for a key of `refused` (to the reason) or of nobody, unless its value is empty.

    `known` holds the keys that the kind reads and those that cannot change what a saved adapter computes.
    """
    for key, value in config.items():
        if key in COMMON or key in known or not value:
            continue
        if key in refused:
            raise InvalidInputError(
                f"adapter_config.json: {key} is {str(value)[:60]!r}: {refused[key]}", metadata={"key": key}
            )
        raise InvalidInputError(
            f"adapter_config.json: unknown key {key[:60]!r} with the value {str(value)[:60]!r}: it might change what "
            "the adapter computes; remove it if it does not",
            metadata={"key": key[:60]},
        )


def whole(config: Mapping[str, Any], key: str) -> int:
    """A positive whole number. Raises `InvalidInputError`."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InvalidInputError(f"adapter_config.json: {key}: expected a positive whole number, found {value!r}")
    return value


def number(value: Any, what: str) -> float:
    """A finite number. Raises `InvalidInputError`."""
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise InvalidInputError(f"adapter_config.json: {what}: expected a number, found {str(value)[:60]!r}")
    return float(value)


def mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object; an absent or null one is empty. Raises `InvalidInputError`."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(f"adapter_config.json: {key}: expected an object, found {str(value)[:60]!r}")
    return value


def in_model_order(modules: Iterable[str], base: BaseSpec | None) -> list[str]:
    """The modules in the base's order where it is known; otherwise by name, layer 10 after layer 9."""
    order = {module: index for index, module in enumerate(base.linears)} if base else {}
    return sorted(modules, key=lambda module: (order.get(module, len(order)), _natural(module)))


def check_targets(targets: Any, modules: Sequence[str]) -> None:
    """A list must cover every module that has tensors: PEFT would leave the others out. An expression is not evaluated
    (it is PEFT's to match, and could be made to take for ever)."""
    if targets is None or isinstance(targets, str):
        return
    if not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise InvalidInputError("adapter_config.json: target_modules: expected a list of names, or a string")
    exact = set(targets)
    for module in modules:
        parts = module.split(".")
        if not any(".".join(parts[i:]) in exact for i in range(len(parts))):
            raise InvalidInputError(f"adapter_config.json: target_modules does not name {module}, which has tensors")


def _natural(module: str) -> list[tuple[bool, int, str]]:
    """A sorting key by which layer 10 comes after layer 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in module.split(".")]
