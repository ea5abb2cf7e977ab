"""The native decoder in tests: built once for all of them; skipped, with the reason, where it cannot run."""

from functools import cache
from pathlib import Path

import pytest

from weft_adapters.base import StoredBase
from weft_registry.errors import UnsupportedError
from weft_server.torch_engine.native.choose import native_library
from weft_server.torch_engine.native.decoder import NativeDecoder

BUILT = Path(__file__).resolve().parents[2] / ".cache" / "weft-test" / "native"


def library(base: StoredBase) -> Path:
    """The library for `base`, or a skipped test."""
    try:
        return _library(base)
    except UnsupportedError as error:
        pytest.skip(str(error))


@cache
def _library(base: StoredBase) -> Path:
    return native_library(base, BUILT)


def decoder(base: StoredBase, num_threads: int = 2) -> NativeDecoder:
    """A native decoder over `base`, or a skipped test."""
    return NativeDecoder(base, library(base), num_threads)
