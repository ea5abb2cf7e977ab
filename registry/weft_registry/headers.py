"""Reads a safetensors file that a stranger sent: its header, and each tensor's bytes, in bounded memory.

The format is 8 bytes of little-endian header length, a JSON header, and the tensors' bytes. The safetensors library
accepts headers of 99 MB, a million empty tensors, duplicate keys, leading white space and names such as "../x"; this
parser refuses them before anything is allocated for a tensor. It knows nothing of adapter kinds, and needs no torch.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from weft_registry import canonical
from weft_registry.beside import HashBeside
from weft_registry.errors import InvalidInputError

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 8
MAX_METADATA_CHARACTERS = 1 << 20
CHUNK_BYTES = 1 << 20
DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
# A float is NaN or infinite exactly when its exponent bits are all ones.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_KEYS = {"dtype", "shape", "data_offsets"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the FILE."""
    end: int
    """One past the last byte."""


@dataclass(frozen=True)
class Header:
    """A checked header: entries in file order, without holes or overlaps, ending where the file ends."""

    entries: tuple[HeaderEntry, ...]
    metadata: Mapping[str, str]

    @cached_property
    def places(self) -> dict[str, int]:
        """Place in the file by tensor name."""
        return {entry.name: place for place, entry in enumerate(self.entries)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by tensor name."""
        return {entry.name: entry.shape for entry in self.entries}


@dataclass(frozen=True)
class TensorScan:
    """What one pass over a tensor's bytes found."""

    sha256: str
    """"sha256:<hex>" of the bytes."""
    non_finite: int
    """How many elements are NaN or infinite."""


def read_header(file: BinaryIO, size_bytes: int, what: str = "adapter_model.safetensors") -> Header:
    """Parses and checks the header of `file`, which is `size_bytes` long. Raises `InvalidInputError` naming `what`."""
    file.seek(0)
    prefix = file.read(8)
    if len(prefix) < 8:
        raise InvalidInputError(f"{what}: {size_bytes} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise InvalidInputError(f"{what}: a header of {length} bytes; at most {MAX_HEADER_BYTES}")
    if 8 + length > size_bytes:
        raise InvalidInputError(f"{what}: truncated: the header claims {length} bytes, the file has {size_bytes}")
    raw = file.read(length)
    # Writers pad the end of the header with spaces; white space anywhere else hides something.
    if len(raw) != length or not raw.startswith(b"{") or not raw.rstrip(b" ").endswith(b"}"):
        raise InvalidInputError(f"{what}: the header is not one JSON object")
    # Before they are parsed: a header of empty tensors has three times as many as are let in.
    if raw.count(b"{") > MAX_TENSORS + 2:
        raise InvalidInputError(f"{what}: too many tensors; at most {MAX_TENSORS}")
    document = canonical.loads(raw, f"{what} header")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidInputError(f"{what}: __metadata__ must map strings to strings")
    if sum(map(len, metadata.values())) > MAX_METADATA_CHARACTERS:
        raise InvalidInputError(f"{what}: __metadata__ has more than {MAX_METADATA_CHARACTERS} characters")
    if len(document) > MAX_TENSORS:
        raise InvalidInputError(f"{what}: {len(document)} tensors; at most {MAX_TENSORS}")
    if not document:
        raise InvalidInputError(f"{what}: no tensors")
    entries = sorted((_entry(name, value, 8 + length, what) for name, value in document.items()), key=lambda e: e.start)
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            kind = "overlaps the one before it" if entry.start < end else "leaves a hole before it"
            raise InvalidInputError(f"{what}: tensor {entry.name!r} {kind}")
        end = entry.end
    if end != size_bytes:
        state = "truncated" if end > size_bytes else "trailing bytes"
        raise InvalidInputError(f"{what}: {state}: the tensors end at byte {end}, the file at {size_bytes}")
    return Header(tuple(entries), metadata)


def read_tensor(file: BinaryIO, entry: HeaderEntry) -> Iterator[bytes]:
    """The tensor's bytes, in chunks of at most 1 MiB. Raises `InvalidInputError` where the file ends early."""
    file.seek(entry.start)
    left = entry.end - entry.start
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise InvalidInputError(f"tensor {entry.name!r}: the file ends {left} bytes early")
        left -= len(chunk)
        yield chunk


def scan_tensors(file: BinaryIO, header: Header) -> list[TensorScan]:
    """Digest and NaN/Inf count of each tensor, in file order, in one pass."""
    scans = []
    with HashBeside() as hashing:
        for entry in header.entries:
            bad = sum(non_finite(chunk, entry.dtype) for chunk in _handed_on(file, entry, hashing))
            scans.append(TensorScan(hashing.digest(), bad))
            hashing.start_over()
    return scans


def count_non_finite(file: BinaryIO, entry: HeaderEntry) -> int:
    """How many elements of one tensor are NaN or infinite: what `scan_tensors` finds, in a quarter of the time."""
    return sum(non_finite(chunk, entry.dtype) for chunk in read_tensor(file, entry))


def _handed_on(file: BinaryIO, entry: HeaderEntry, hashing: HashBeside) -> Iterator[bytes]:
    for chunk in read_tensor(file, entry):
        hashing.update(chunk)
        yield chunk


def non_finite(chunk: bytes | memoryview, dtype: str) -> int:
    """How many numbers of a whole number of them are NaN or infinite."""
    if dtype not in _EXPONENTS:
        return 0
    # Imported here: listing versions needs neither numpy nor the half second that importing it may take.
    import numpy as np

    view, exponent = _EXPONENTS[dtype]
    ones = np.dtype(view).type(exponent)
    # A chunk is a whole number of elements: its size divides by that of every element, and so does the rest.
    return int(np.count_nonzero((np.frombuffer(chunk, ones.dtype) & ones) == ones))


def _entry(name: str, value: object, data_start: int, what: str) -> HeaderEntry:
    where = f"{what}: tensor {name[:100]!r}"
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInputError(f"{where}: a name has letters, digits, '_', '-' and '.', at most 255, and no '..'")
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise InvalidInputError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidInputError(f"{where}: dtype {str(dtype)[:40]!r}; allowed: {', '.join(DTYPE_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not _are_whole(shape) or 0 in shape:
        raise InvalidInputError(f"{where}: shape: expected at most {MAX_DIMENSIONS} positive whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_whole(offsets):
        raise InvalidInputError(f"{where}: data_offsets: expected two whole numbers")
    start, end = offsets
    if end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise InvalidInputError(f"{where}: {dtype} of shape {shape[:8]} does not fill the bytes {start} to {end}")
    return HeaderEntry(name, dtype, tuple(shape), data_start + start, data_start + end)


def _are_whole(values: list[object]) -> bool:
    for value in values:  # noqa: SIM110 - a generator costs more than what it checks, a thousand times a file
        if type(value) is not int or value < 0:
            return False
    return True
