"""The rotary parameters of a config.json, in the spelling of transformers 5 (`rope_parameters`) or of 4 (`rope_theta`
beside `rope_scaling`). Knows the forms the decoder computes: default, linear, llama3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft_registry.errors import InvalidInputError, UnsupportedError

DEFAULT_THETA = 10_000.0
_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def parse_rope(data: Mapping[str, Any], context: int, what: str) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) of a config; scaling is None for the default form, else a dict with `rope_type` and its numbers.

    Raises `UnsupportedError` for another form and `InvalidInputError` for a missing or mistyped number.
    """
    given = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{what}: rope_scaling must be an object, found {given!r}")
    if any(isinstance(v, Mapping) for v in given.values()):
        raise UnsupportedError(f"{what}: rope_parameters per layer type are not supported")
    theta = _number(given.get("rope_theta", data.get("rope_theta", DEFAULT_THETA)), f"{what}: rope_theta")
    for source in (given, data):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise UnsupportedError(f"{what}: partial_rotary_factor {source['partial_rotary_factor']!r}; only 1 is")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in _KEYS:
        raise UnsupportedError(f"{what}: rope_type {kind!r} is not supported; supported are default, linear, llama3")
    scaling: dict[str, Any] = {"rope_type": kind}
    for key in _KEYS[kind]:
        # transformers falls back to the context length when a llama3 config leaves its original length out.
        value = given.get(key, context if key.startswith("original") else None)
        scaling[key] = _number(value, f"{what}: rope_scaling.{key}")
    return theta, scaling


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise InvalidInputError(f"{what} must be a positive number, found {value!r}")
    return float(value)
