"""The safetensors header parser: what the library accepts and we must not, and agreement on what is sound."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from tests.registry.lab import raw_safetensors, safetensors_bytes
from weft_registry import digest, headers
from weft_registry.errors import InvalidInputError


def read(data: bytes) -> headers.Header:
    return headers.read_header(io.BytesIO(data), len(data))


def file_with(header: object, data: bytes = b"\0" * 8) -> bytes:
    return raw_safetensors(header if isinstance(header, bytes) else json.dumps(header).encode(), data)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_safetensors_library_writes() -> None:
    tensors = {"b.weight": np.arange(6, dtype="f4").reshape(2, 3), "a": np.ones((4,), "f2")}
    data = save(tensors, {"format": "pt"})
    header = read(data)
    assert header.metadata == {"format": "pt"}
    assert header.shapes == {"b.weight": (2, 3), "a": (4,)}
    for item, scan in zip(header.entries, headers.scan_tensors(io.BytesIO(data), header), strict=True):
        assert scan == headers.TensorScan(digest.of_bytes(tensors[item.name].tobytes()), 0)
        assert data[item.start : item.end] == tensors[item.name].tobytes()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too few"),
    "header length beyond the file": (struct.pack("<Q", 500) + b"{}", "truncated"),
    "header of 2^63 bytes": (struct.pack("<Q", 1 << 63) + b"{}", "at most"),
    "header over the cap": (file_with(b"{" + b" " * headers.MAX_HEADER_BYTES + b"}"), "at most"),
    "duplicate key": (file_with(b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{}}'), "twice"),
    "duplicate inner key": (file_with(b'{"a":{"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]}}'), "twice"),
    "leading white space": (file_with(b" " + json.dumps({"a": entry()}).encode()), "one JSON object"),
    "trailing newline": (file_with(json.dumps({"a": entry()}).encode() + b"\n"), "one JSON object"),
    "not JSON": (file_with(b"{nonsense}"), "not UTF-8 JSON"),
    "deep nesting": (file_with(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nest"),
    "a list": (file_with(b"[]"), "one JSON object"),
    "no tensors": (file_with({}, b""), "no tensors"),
    "too many tensors": (
        file_with({f"t{i}": entry("U8", (1,), (i, i + 1)) for i in range(headers.MAX_TENSORS + 1)}, b""),
        "at most 65536",
    ),
    "path as a name": (file_with({"../../x": entry()}), "a name has"),
    "dots in a name": (file_with({"a..b": entry()}), "a name has"),
    "control character in a name": (file_with({"a\u0007": entry()}), "a name has"),
    "unknown dtype": (file_with({"a": entry("Q4")}), "dtype"),
    "dtype is a list": (file_with({"a": entry(["F32"])}), "dtype"),
    "negative dimension": (file_with({"a": entry(shape=(-2,))}), "shape"),
    "zero dimension": (file_with({"a": entry(shape=(0,), offsets=(0, 0))}, b""), "shape"),
    "boolean dimension": (file_with({"a": entry("U8", (True,), (0, 1))}, b"\0"), "shape"),
    "overflowing shape": (file_with({"a": entry(shape=(1 << 62, 1 << 62))}), "does not fill"),
    "many dimensions": (file_with({"a": entry("U8", (1,) * 9, (0, 1))}, b"\0"), "shape"),
    "lying shape": (file_with({"a": entry(shape=(3,))}), "does not fill"),
    "end before begin": (file_with({"a": entry(offsets=(8, 0))}), "does not fill"),
    "float offset": (file_with(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0.0,8]}}'), "integer"),
    "overlap": (file_with({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "overlaps"),
    "shared range": (file_with({"a": entry(), "b": entry()}), "overlaps"),
    "hole": (file_with({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "hole"),
    "hole at the start": (file_with({"a": entry(offsets=(4, 12))}, b"\0" * 12), "hole"),
    "trailing bytes": (file_with({"a": entry()}, b"\0" * 9), "trailing bytes"),
    "truncated data": (file_with({"a": entry()}, b"\0" * 7), "truncated"),
    "extra key in an entry": (file_with({"a": {**entry(), "x": 1}}), "expected dtype"),
    "metadata that is no text": (file_with({"__metadata__": {"a": 1}, "t": entry()}), "strings to strings"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_is_refused_by_name(case: str) -> None:
    data, words = HOSTILE[case]
    with pytest.raises(InvalidInputError, match="adapter_model") as caught:
        read(data)
    assert words in caught.value.message


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_scan_counts_every_nan_and_infinity_and_nothing_else(dtype: str) -> None:
    width, exponent, mantissa = {"F32": (4, 8, 23), "F16": (2, 5, 10), "BF16": (2, 8, 7), "F64": (8, 11, 52)}[dtype]
    top = ((1 << exponent) - 1) << mantissa
    sign = 1 << (8 * width - 1)
    not_finite = [top, top | sign, top | 1, top | sign | (1 << (mantissa - 1))]
    finite = [0, sign, 1, top - 1, (top - 1) | sign, top - (1 << mantissa)]
    # More than one chunk, so that the pieces' borders are crossed.
    values = (finite * 200_000)[: (3 << 20) // width] + not_finite
    data = np.array(values, f"<u{width}").tobytes()
    entry = headers.HeaderEntry("t", dtype, (len(values),), 0, len(data))
    (scan,) = headers.scan_tensors(io.BytesIO(data), headers.Header((entry,), {}))
    assert scan.non_finite == headers.count_non_finite(io.BytesIO(data), entry)
    assert scan == headers.TensorScan(digest.of_bytes(data), len(not_finite))


def test_a_tensor_that_the_file_does_not_hold_is_refused() -> None:
    data = safetensors_bytes({"a": np.ones(4, "f4")})
    item = read(data).entries[0]
    with pytest.raises(InvalidInputError, match="ends 16 bytes early"):
        headers.scan_tensors(io.BytesIO(data[:-16]), headers.Header((item,), {}))
