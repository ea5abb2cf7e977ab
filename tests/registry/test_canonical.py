"""Canonical JSON: one value has one text, whoever writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_registry import canonical
from weft_registry.errors import InvalidInputError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
integers = st.integers(canonical.MIN_INTEGER, canonical.MAX_INTEGER)
values = st.recursive(
    st.none() | st.booleans() | integers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(text, values, max_size=5))
def test_round_trip(document: dict[str, Any]) -> None:
    data = canonical.dumps(document)
    assert canonical.loads(data, "it") == document
    assert canonical.dumps(canonical.loads(data, "it")) == data


@given(st.dictionaries(text, values, max_size=5), st.randoms(use_true_random=False))
def test_order_of_keys_and_white_space_do_not_matter(document: dict[str, Any], random: Any) -> None:
    items = list(document.items())
    random.shuffle(items)
    other = json.dumps(dict(items), indent=3).encode()
    assert canonical.dumps(canonical.loads(other, "it")) == canonical.dumps(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1,"a":1}',
        b"\xff{}",
        b'{"a"',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"a":' + b"[" * 200000,
        b'{"a":18446744073709551616}',
        b'{"a":[{"b":-9223372036854775809}]}',
        b'{"a":' + b"9" * 100_000 + b"}",
    ],
)
def test_what_is_not_canonical_material_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        canonical.loads(data, "it")


@pytest.mark.parametrize("value", [1.5, {"a": 0.1}, {1: "a"}, {"a": b"x"}, {"a": {1, 2}}])
def test_a_float_or_a_stranger_is_never_written(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        canonical.dumps(value)
