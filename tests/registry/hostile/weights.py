"""Hostile files of weights: what a safetensors file can lie about. The library accepts some of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.registry.hostile.case import Cases, edit_manifest, put_weights
from tests.registry.lab import random_tensors, raw_safetensors, safetensors_bytes
from weft_registry import digest as digests

CASES = Cases()
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
# A value of each dtype that is no number, as its little-endian bits.
NOT_FINITE: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "nan": {"F16": (2, 0x7E01), "BF16": (2, 0x7FC1), "F32": (4, 0x7FC0_0001)},
    "signalling_nan": {"F16": (2, 0x7C01), "BF16": (2, 0x7F81), "F32": (4, 0x7F80_0001)},
    "infinity": {"F16": (2, 0xFC00), "BF16": (2, 0xFF80), "F32": (4, 0x7F80_0000)},
}


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def with_header(directory: Path, header: object, data: bytes = b"\0" * 8) -> None:
    put_weights(directory, raw_safetensors(header if isinstance(header, bytes) else json.dumps(header).encode(), data))


def retyped(dtype: str, width: int, first_bits: int | None) -> tuple[bytes, str]:
    """The valid weights, A0 of another dtype: all ones but for its first element. And the digest of A0's bytes."""
    header: dict[str, Any] = {}
    data, digest = b"", ""
    for name, array in random_tensors("lora").items():
        raw, kind = array.tobytes(), "F32"
        if name == A0:
            raw, kind = bytes([0x01]) * (width * array.size), dtype
            if first_bits is not None:
                raw = first_bits.to_bytes(width, "little") + raw[width:]
            digest = digests.of_bytes(raw)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return raw_safetensors(json.dumps(header).encode(), data), digest


def put_retyped(directory: Path, dtype: str, width: int, first_bits: int | None) -> None:
    """The same, honestly described by the manifest."""
    data, digest = retyped(dtype, width, first_bits)
    put_weights(directory, data)

    def change(document: dict[str, Any]) -> None:
        for tensor in document["tensors"]:
            if tensor["name"] == A0:
                tensor.update(dtype=dtype, sha256=digest)

    edit_manifest(directory, change)


for _what, _dtypes in NOT_FINITE.items():
    for _dtype, (_width, _bits) in _dtypes.items():
        CASES.add(
            f"{_what}_in_{_dtype.lower()}",
            lambda d, dtype=_dtype, width=_width, bits=_bits: put_retyped(d, dtype, width, bits),  # type: ignore[misc]
            "1 element is NaN or infinite",
        )
# Dtypes that no kind stores its weights in: whether they are numbers is not even asked.
for _dtype, _width, _says in (
    ("F64", 8, "F64 of shape"),
    ("I8", 1, "I8 of shape"),
    ("BOOL", 1, "BOOL of shape"),
    ("F8_E4M3", 1, "dtype 'F8_E4M3'"),
    ("F8_E5M2", 1, "dtype 'F8_E5M2'"),
    ("F8_E8M0", 1, "dtype 'F8_E8M0'"),
    ("C64", 8, "dtype 'C64'"),
    ("F4", 1, "dtype 'F4'"),
):
    CASES.add(
        f"weights_in_{_dtype.lower()}",
        lambda d, dtype=_dtype, width=_width: put_retyped(d, dtype, width, None),  # type: ignore[misc]
        _says,
    )


@CASES("too few")
def an_empty_file(directory: Path) -> None:
    put_weights(directory, b"")


@CASES("too few")
def seven_bytes(directory: Path) -> None:
    put_weights(directory, b"\0" * 7)


@CASES("a header of 9223372036854775808 bytes")
def header_of_2_63_bytes(directory: Path) -> None:
    put_weights(directory, struct.pack("<Q", 1 << 63) + b"{}")


@CASES("a header of 18446744073709551615 bytes")
def header_of_2_64_less_1_bytes(directory: Path) -> None:
    put_weights(directory, struct.pack("<Q", (1 << 64) - 1) + b"{}")


@CASES("truncated: the header claims")
def header_longer_than_the_file(directory: Path) -> None:
    put_weights(directory, struct.pack("<Q", 5000) + b"{}")


@CASES("at most 8388608")
def metadata_header_of_99_mb(directory: Path) -> None:
    metadata = b'{"__metadata__":{"a":"' + b"x" * (99 << 20) + b'"},'
    with_header(directory, metadata + json.dumps({"t": entry()}).encode()[1:])


@CASES("__metadata__ has")
def metadata_of_7_mb(directory: Path) -> None:
    with_header(directory, {"__metadata__": {"a": "x" * (7 << 20)}, "t": entry()})


@CASES("at most 8388608")
def a_million_empty_tensors(directory: Path) -> None:
    tensor = ':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    with_header(directory, ("{" + ",".join(f'"t{i}"{tensor}' for i in range(1_000_000)) + "}").encode(), b"")


@CASES("at most 65536")
def as_many_empty_tensors_as_fit(directory: Path) -> None:
    tensor = ':{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    many = ",".join(f'"{i:x}"{tensor}' for i in range((8 << 20) // 58))
    with_header(directory, ("{" + many + "}").encode(), b"")


@CASES("the manifest says no such tensor")
def sixty_thousand_tensors_that_the_manifest_leaves_out(directory: Path) -> None:
    with_header(directory, {f"t{i}": entry("U8", (1,), (i, i + 1)) for i in range(60_000)}, b"\0" * 60_000)


@CASES("a.weight' appears twice")
def a_tensor_twice(directory: Path) -> None:
    one = '"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    with_header(directory, ("{" + one + "," + one + "}").encode())


@CASES("the key 'shape' appears twice")
def a_shape_twice(directory: Path) -> None:
    with_header(directory, b'{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,8]}}')


@CASES("not one JSON object")
def leading_white_space(directory: Path) -> None:
    with_header(directory, b"   " + json.dumps({"a": entry()}).encode())


@CASES("not one JSON object")
def a_byte_order_mark(directory: Path) -> None:
    with_header(directory, b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode())


@CASES("not UTF-8 JSON")
def a_second_object_after_the_first(directory: Path) -> None:
    with_header(directory, json.dumps({"a": entry()}).encode() + b"{}")


@CASES("not UTF-8 JSON")
def names_in_latin_1(directory: Path) -> None:
    with_header(directory, b'{"\xe9":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')


@CASES("nested too deeply")
def a_header_of_brackets(directory: Path) -> None:
    with_header(directory, b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@CASES("not UTF-8 JSON")
def a_number_of_five_million_digits(directory: Path) -> None:
    digits = b"9" * 5_000_000
    with_header(directory, b'{"a":{"dtype":"F32","shape":[' + digits + b'],"data_offsets":[0,8]}}')


@CASES("a name has letters")
def a_tensor_named_as_a_path(directory: Path) -> None:
    with_header(directory, {"../../x": entry()})


@CASES("a name has letters")
def a_tensor_with_a_nul_in_its_name(directory: Path) -> None:
    with_header(directory, {"a\0b": entry()})


@CASES("a name has letters")
def a_tensor_whose_name_hides_its_end(directory: Path) -> None:
    with_header(directory, {"weight\u202egnp.": entry()})


@CASES("a name has letters")
def a_tensor_name_of_a_megabyte(directory: Path) -> None:
    with_header(directory, {"a" * (1 << 20): entry()})


@CASES("overlaps")
def two_tensors_that_overlap(directory: Path) -> None:
    with_header(directory, {"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12)


@CASES("overlaps")
def two_tensors_of_the_same_bytes(directory: Path) -> None:
    with_header(directory, {"a": entry(), "b": entry()})


@CASES("leaves a hole")
def a_hole_between_tensors(directory: Path) -> None:
    with_header(directory, {"a": entry(), "b": entry(offsets=(4096, 4104))}, b"\0" * 4104)


@CASES("trailing bytes")
def a_payload_after_the_last_tensor(directory: Path) -> None:
    with_header(directory, {"a": entry()}, b"\0" * 8 + b"#!/bin/sh\n")


@CASES("truncated: the tensors end")
def a_file_cut_in_its_last_tensor(directory: Path) -> None:
    put_weights(directory, safetensors_bytes(random_tensors("lora"))[:-5])


@CASES("does not fill")
def a_shape_that_lies(directory: Path) -> None:
    with_header(directory, {"a": entry(shape=(1 << 20, 1 << 20))})


@CASES("does not fill")
def a_shape_that_overflows_64_bits(directory: Path) -> None:
    with_header(directory, {"a": entry(shape=(1 << 62, 4, 2))})


@CASES("shape: expected")
def a_negative_shape(directory: Path) -> None:
    with_header(directory, {"a": entry(shape=(-1, -2))})


@CASES("shape: expected")
def a_shape_of_a_thousand_dimensions(directory: Path) -> None:
    with_header(directory, {"a": entry(shape=(1,) * 999 + (2,))})


@CASES("is not an integer")
def a_shape_of_decimals(directory: Path) -> None:
    with_header(directory, {"a": entry(shape=(2.0,))})


@CASES("data_offsets: expected")
def negative_offsets(directory: Path) -> None:
    with_header(directory, {"a": entry(offsets=(-8, 0))})


@CASES("does not fill")
def an_end_before_its_begin(directory: Path) -> None:
    with_header(directory, {"a": entry(offsets=(8, 0))})


@CASES("64 bits")
def offsets_beyond_64_bits(directory: Path) -> None:
    with_header(directory, {"a": entry(offsets=(0, 1 << 64))})


@CASES("dtype")
def an_unknown_dtype(directory: Path) -> None:
    with_header(directory, {"a": entry("PICKLE")})


@CASES("dtype")
def a_dtype_that_is_an_object(directory: Path) -> None:
    with_header(directory, {"a": entry({"F32": 1})})


@CASES("expected dtype, shape and data_offsets")
def a_tensor_that_is_a_string(directory: Path) -> None:
    with_header(directory, {"a": "F32"})


@CASES("strings to strings")
def metadata_that_nests(directory: Path) -> None:
    with_header(directory, {"__metadata__": {"a": {"b": "c"}}, "t": entry()})


@CASES("1 element is NaN or infinite")
def a_nan_at_the_very_end_of_the_last_tensor(directory: Path) -> None:
    tensors = random_tensors("lora")
    last = list(tensors)[-1]
    tensors[last].reshape(-1)[-1] = np.nan
    put_weights(directory, safetensors_bytes(tensors))

    def change(document: dict[str, Any]) -> None:
        for tensor in document["tensors"]:
            if tensor["name"] == last:
                tensor["sha256"] = digests.of_bytes(tensors[last].tobytes())

    edit_manifest(directory, change)


@CASES("but its bytes have")
def tensors_that_changed_places(directory: Path) -> None:
    tensors = random_tensors("lora")
    names = [name for name in tensors if name.endswith("q_proj.lora_A.weight")]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    put_weights(directory, safetensors_bytes(tensors))


@CASES("too few", wire="too few")
def weights_that_are_a_pickle(directory: Path) -> None:
    put_weights(directory, b"\x80\x04N.")


@CASES("a header of")
def weights_that_are_a_zip(directory: Path) -> None:
    put_weights(directory, b"PK\x03\x04\x14\x00\x08\x08" + b"\0" * 64)
