"""Whether the native decoder can compute a base on this machine, and the library to do it with."""

from __future__ import annotations

from pathlib import Path

from weft_adapters.base.load import StoredBase
from weft_registry.errors import UnsupportedError
from weft_server.torch_engine.native import layout
from weft_server.torch_engine.native.library import built, unsupported_here


def native_library(base: StoredBase, directory: Path) -> Path:
    """The library, built into `directory` if it is not there yet.

    Raises `UnsupportedError` saying what is missing: in the processor, in the base's shape, or a compiler.
    """
    reason = unsupported_here() or _unsupported(base)
    if reason is not None:
        raise UnsupportedError(f"the native decoder cannot be used: {reason}", reason="NOT_NATIVE")
    return built(directory)


def _unsupported(base: StoredBase) -> str | None:
    config, group = base.config, base.spec.fingerprint.quant.group_size
    if group % 16:
        return f"the base has groups of {group} inputs, and its operators take multiples of 16"
    if config.head_dim % 16 or config.head_dim > layout.MOST_HEAD_DIM:
        return (
            f"the base has heads of {config.head_dim}, and its operators take multiples of 16 up to "
            f"{layout.MOST_HEAD_DIM}"
        )
    for module, (n_out, n_in) in base.spec.linears.items():
        if n_out % layout.BLOCK_N or n_in % group:
            return (
                f"{module} is {n_out} x {n_in}, and its operators take outputs in blocks of {layout.BLOCK_N} and "
                "inputs in whole groups"
            )
    return None
