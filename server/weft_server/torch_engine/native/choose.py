"""Whether the native decoder can compute a base on this machine, and the library to do it with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weft_registry.base import BaseSpec
from weft_registry.errors import UnsupportedError
from weft_server.torch_engine.native import layout
from weft_server.torch_engine.native.library import built, unsupported_here

if TYPE_CHECKING:
    from weft_adapters.base.load import StoredBase


def native_library(base: StoredBase, directory: Path) -> Path:
    """The library, built into `directory` if it is not there yet.

    Raises `UnsupportedError` saying what is missing: in the processor, in the base's shape, or a compiler.
    """
    reason = why_not_native(base.spec)
    if reason is not None:
        raise UnsupportedError(f"the native decoder cannot be used: {reason}", reason="NOT_NATIVE")
    return built(directory)


def why_not_native(spec: BaseSpec) -> str | None:
    """What keeps the native decoder from computing a base here: the processor, or the base's shape. That a compiler is
    missing shows when one is needed. Loads nothing, not even torch."""
    return unsupported_here() or _unsupported(spec)


def _unsupported(spec: BaseSpec) -> str | None:
    group = spec.fingerprint.quant.group_size
    if group % 16:
        return f"the base has groups of {group} inputs, and its operators take multiples of 16"
    if spec.head_dim % 16 or spec.head_dim > layout.MOST_HEAD_DIM:
        return (
            f"the base has heads of {spec.head_dim}, and its operators take multiples of 16 up to "
            f"{layout.MOST_HEAD_DIM}"
        )
    for module, (n_out, n_in) in spec.linears.items():
        if n_out % layout.BLOCK_N or n_in % group:
            return (
                f"{module} is {n_out} x {n_in}, and its operators take outputs in blocks of {layout.BLOCK_N} and "
                "inputs in whole groups"
            )
    return None
