"""Every parser of the registry, on a bounded number of hostile inputs. `make fuzz` goes on for ten minutes."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.registry.fuzz.mutate import mutated
from tests.registry.fuzz.targets import SEEDS, TARGETS, fuzz_composition, fuzz_header, fuzz_reference, fuzz_route
from weft_registry import canonical, headers
from weft_registry.errors import InvalidInputError

# Expressions may be such as a later Python will read otherwise; the matcher says so.
pytestmark = pytest.mark.filterwarnings("ignore:Possible (nested set|set)")
RUNS = 1500


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_valid_input_are_parsed_rightly_or_refused(name: str) -> None:
    generator = random.Random(name)
    for seed in SEEDS[name]:
        TARGETS[name](seed)
    for _ in range(RUNS):
        data = mutated(generator, SEEDS[name])
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{name}, of {data!r}") from error


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=60)
def test_any_bytes_are_parsed_rightly_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name](
        data.draw(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
    )


@given(st.text(max_size=80))
@example("a/b:c@sha256:" + "0" * 64 + "\u2028")
@example("a/b:\u0661")
@example("a/b@")
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    fuzz_reference(text.encode("utf-8", "surrogatepass"))


_PART = st.from_regex(r"[a-z0-9]{1,5}/[a-z0-9]{1,5}(:v[0-9]{1,2})?", fullmatch=True)


@given(st.lists(st.tuples(_PART, st.none() | st.floats()), min_size=1, max_size=18))
def test_any_composition_is_parsed_rightly_or_refused(parts: list[tuple[str, float | None]]) -> None:
    text = "+".join(part if weight is None else f"{part}*{weight!r}" for part, weight in parts)
    fuzz_composition(text.encode())


@given(
    st.lists(
        st.sampled_from(["api", "models", "..", ".", "a", "%2e%2e", "%2F", "resolve", "main", "%00", "", "\\", "é"])
    )
)
def test_any_path_of_known_words_is_a_page_or_is_refused(words: list[str]) -> None:
    fuzz_route(("/" + "/".join(words)).encode())


_TENSORS = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}", fullmatch=True).filter(lambda name: ".." not in name),
    st.tuples(st.sampled_from(["f4", "f2", "f8", "i1", "u1", "i8"]), st.lists(st.integers(1, 4), max_size=3)),
    min_size=1,
    max_size=5,
)


@given(_TENSORS)
def test_what_the_library_writes_is_accepted_and_seen_alike(tensors: dict[str, tuple[str, list[int]]]) -> None:
    data = save({name: np.ones(shape, dtype) for name, (dtype, shape) in tensors.items()})
    assert headers.read_header(io.BytesIO(data), len(data)).shapes.keys() == tensors.keys()
    fuzz_header(data)


_SCALARS: st.SearchStrategy[Any] = st.integers(-2, 40) | st.sampled_from(
    [1 << 31, 1 << 63, (1 << 64) - 1, 2.0, True, None, "8", []]
)
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "I64", "BOOL", "F8_E4M3", "f32", 1, None]),
        "shape": st.lists(_SCALARS, max_size=4),
        "data_offsets": st.lists(_SCALARS, min_size=1, max_size=3),
    }
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "../x", "", "é"]), _ENTRIES, max_size=3),
    st.binary(max_size=64),
)
@settings(max_examples=400)
def test_no_header_is_accepted_that_the_library_refuses(document: dict[str, Any], data: bytes) -> None:
    header = json.dumps(document).encode()
    fuzz_header(len(header).to_bytes(8, "little") + header + data)


@given(st.binary(max_size=200))
def test_canonical_json_is_a_fixed_point(data: bytes) -> None:
    try:
        value = canonical.loads(data, "it")
    except InvalidInputError:
        return
    written = canonical.dumps(value)
    assert canonical.dumps(canonical.loads(written, "it")) == written
