"""The manifest: parsed strictly, written canonically, its digest the version's identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.lab import BASE
from weft_registry import artifact, canonical
from weft_registry.errors import InvalidInputError
from weft_registry.manifest import FileEntry, Manifest, Metric, TensorEntry

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
manifests = st.builds(
    Manifest,
    kind=text,
    name=text,
    created=st.just("2026-01-31T12:00:00Z"),
    license=text,
    base=st.just(BASE.fingerprint),
    adapter=st.dictionaries(text, st.integers(-(1 << 63), (1 << 64) - 1) | text, max_size=4),
    tensors=st.lists(
        st.builds(TensorEntry, text, text, st.lists(st.integers(0, 99), max_size=3).map(tuple), digests), max_size=3
    ),
    files=st.lists(st.builds(FileEntry, text, st.integers(0, 1 << 40), digests, text), max_size=3),
    tokenizer=st.dictionaries(text, text, max_size=2),
    provenance=st.dictionaries(text, text, max_size=2),
    metrics=st.lists(st.builds(Metric, text, text, text, text), max_size=2),
)


@given(manifests)
def test_round_trip_keeps_the_digest(manifest: Manifest) -> None:
    data = manifest.canonical_bytes()
    assert Manifest.parse(data) == manifest
    assert Manifest.parse(data).digest() == manifest.digest()


@given(manifests, text)
def test_any_change_changes_the_digest(manifest: Manifest, license: str) -> None:
    assert (replace(manifest, license=license).digest() == manifest.digest()) == (license == manifest.license)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown key": lambda m: m.update(extra=1),
    "missing key": lambda m: m.pop("license"),
    "wrong type": lambda m: m.update(files={}),
    "newer schema": lambda m: m.update(schema_version=2),
    "boolean as a version": lambda m: m.update(schema_version="1"),
    "time without a zone": lambda m: m.update(created="2026-01-31T12:00:00"),
    "unknown base key": lambda m: m["base"].update(extra=1),
    "missing quant": lambda m: m["base"].pop("quant"),
    "bits as text": lambda m: m["base"]["quant"].update(bits="4"),
    "negative size": lambda m: m["files"][0].update(size=-1),
    "bad digest": lambda m: m["files"][0].update(sha256="sha256:xyz"),
    "bad tensor digest": lambda m: m["tensors"][0].update(sha256="md5:0"),
    "negative shape": lambda m: m["tensors"][0].update(shape=[-1]),
    "extra tensor key": lambda m: m["tensors"][0].update(offset=1),
    "metric value as a number": lambda m: m.update(
        metrics=[{"name": "a", "value": 1, "dataset_sha256": "", "split": "test"}]
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_damaged_manifest_is_refused(case: str, new_artifact: Callable[..., Path]) -> None:
    document = json.loads((new_artifact() / artifact.MANIFEST).read_bytes())
    Manifest.parse(canonical.dumps(document))
    CHANGES[case](document)
    with pytest.raises(InvalidInputError):
        Manifest.parse(canonical.dumps(document))
