"""What is fuzzed: every parser that reads a stranger's bytes, and what must hold of whatever it accepts.

A target takes bytes and raises an `AssertionError` (or anything else that is no `WeftError`) when it has found a bug.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import parse_qs

from safetensors import SafetensorError, deserialize

from tests.registry.lab import BASE
from weft_registry import canonical, card, composition, conditions, headers, patterns, peft_format
from weft_registry.api import AdapterSummary
from weft_registry.errors import WeftError
from weft_registry.hub import listing
from weft_registry.hub.files import parse_range
from weft_registry.hub.routes import METHODS, route, segments
from weft_registry.manifest import Manifest
from weft_registry.reference import AdapterName, Reference

Target = Callable[[bytes], None]


def fuzz_canonical(data: bytes) -> None:
    """What parses is written back as other bytes of the same value, and as the same bytes ever after."""
    try:
        value = canonical.loads(data, "it")
    except WeftError:
        return
    written = canonical.dumps(value)
    assert canonical.loads(written, "it") == value == json.loads(data)
    assert canonical.dumps(canonical.loads(written, "it")) == written


def fuzz_manifest(data: bytes) -> None:
    """A manifest that parses has canonical bytes, which parse as the same manifest."""
    try:
        manifest = Manifest.parse(data)
    except WeftError:
        return
    written = manifest.canonical_bytes()
    assert Manifest.parse(written) == manifest
    assert Manifest.parse(written).canonical_bytes() == written


def fuzz_reference(data: bytes) -> None:
    """A reference that parses is written as text that parses as the same, and cannot leave a directory."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (Reference.parse, AdapterName.parse):
        try:
            parsed = parse(text)
        except WeftError:
            continue
        assert parse(str(parsed)) == parsed
        assert str(parse(str(parsed))) == str(parsed)
        assert str(parsed).isascii()
        assert ".." not in str(parsed)


def fuzz_header(data: bytes) -> None:
    """What this parser accepts the safetensors library accepts, and both see the same tensors."""
    try:
        header = headers.read_header(io.BytesIO(data), len(data))
    except WeftError:
        return
    try:
        theirs = {name: (tuple(t["shape"]), t["dtype"], bytes(t["data"])) for name, t in deserialize(data)}
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what was accepted: {error}") from error
    ours = {e.name: (e.shape, e.dtype, data[e.start : e.end]) for e in header.entries}
    assert ours == theirs
    headers.scan_tensors(io.BytesIO(data), header)


def fuzz_route(data: bytes) -> None:
    """A path is a page or is refused, and no part of a page leads out of anything."""
    for method in ("GET", *sorted({method for methods in METHODS.values() for method in methods})):
        try:
            found = route(data, method)
        except WeftError:
            continue
        parts = [*segments(data), found.repo, *found.path.split("/")]
        assert not {".", ".."} & set(parts)
        assert not any("\\" in part or "\0" in part or "\n" in part for part in parts)


def fuzz_range(data: bytes) -> None:
    """A range lies within the file."""
    text = data.decode("latin-1")
    for size in (0, 1, 1000, 1 << 40):
        try:
            span = parse_range(text, size)
        except WeftError:
            continue
        assert span is None or (span.first >= 0 and span.length > 0 and span.first + span.length <= size)


def fuzz_query(data: bytes) -> None:
    """A query of a listing is answered or refused."""
    try:
        query = parse_qs(data.decode("latin-1"), keep_blank_values=True, max_num_fields=64)
    except ValueError:
        return  # Too many fields, which is what the port refuses.
    with suppress(WeftError):
        listing.models(_Empty(), query)


class _Empty:
    """A registry without adapters."""

    def page_adapters(self, namespace: str, after: str, limit: int | None) -> list[AdapterSummary]:
        return []

    page_summaries = page_adapters


def fuzz_composition(data: bytes) -> None:
    """Parts that parse are described by text that parses as the same parts."""
    try:
        parts = composition.parse_parts(data.decode("utf-8", "replace"))
    except WeftError:
        return
    assert composition.parse_parts(composition.describe(parts)) == parts
    composition.composition_digest([(part.reference, part.weight) for part in parts])


def fuzz_conditions(data: bytes) -> None:
    """A condition is clauses of finite numbers, or is refused."""
    try:
        clauses = conditions.parse(data.decode("utf-8", "replace"))
    except WeftError:
        return
    assert clauses
    assert all(clause.number.is_finite() and clause.op in conditions.OPERATORS for clause in clauses)


def fuzz_card(data: bytes) -> None:
    """A card is let in or refused."""
    with suppress(WeftError):
        card.check(data)


def fuzz_config(data: bytes) -> None:
    """A PEFT configuration becomes parameters, or is refused."""
    shapes = {f"base_model.model.{m}.lora_{h}.weight": (4, 4) for m in list(BASE.linears)[:2] for h in "AB"}
    with suppress(WeftError):
        peft_format.from_peft(peft_format.parse_config(data), shapes, None)


def fuzz_pattern(data: bytes) -> None:
    """An expression is evaluated within its budget, or is refused."""
    text = data.decode("utf-8", "replace")
    with suppress(WeftError):
        patterns.check_selector("target_modules", text)
    with suppress(WeftError):
        patterns.ModulePatterns("rank_pattern", {text: 1, "q_proj": 2}).get("model.layers.10.self_attn.q_proj", 0)


TARGETS: Mapping[str, Target] = {
    name.removeprefix("fuzz_"): target for name, target in list(globals().items()) if name.startswith("fuzz_")
}

_TENSOR = (
    b'{"__metadata__":{"a":"b"},"a.w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    b'"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}'
)
_MANIFEST = Manifest(
    "lora", "a", "2026-01-31T12:00:00Z", "mit", BASE.fingerprint, {"r": 4}, [], [], {}, {"seed": 1}, []
).canonical_bytes()
SEEDS: Mapping[str, Sequence[bytes]] = {
    "canonical": [b'{"a":[1,-2,true,null,"\xc3\xa9",{"b":{}}]}', b'{"\\u00e9":"\\ud83d\\ude00"}', b"{}"],
    "manifest": [_MANIFEST],
    "reference": [b"acme/topics:v1@sha256:" + b"a" * 64, b"acme/topics@v1", b"a/b"],
    "header": [len(_TENSOR).to_bytes(8, "little") + _TENSOR + b"\1" * 14],
    "route": [b"/api/models/acme/topics/tree/main/x", b"/acme/topics/resolve/refs%2Fpr%2F1/README.md", b"/api/models"],
    "range": [b"bytes=0-99", b"bytes=-5", b"bytes=5-", b"bytes=0-1,2-3"],
    "query": [b"search=a&author=acme&filter=lora,peft&limit=3&cursor=a%2Fb&full=true"],
    "composition": [b"acme/style*0.5+acme/topics:production", b"a/b*1e3 + c/d*-.5"],
    "conditions": [b"exact_match >= 0.8 and loss[nli.jsonl (x)] < 1.2e3", b"a!=.5"],
    "card": [b"---\nlicense: mit\ntags:\n- lora\n- 'x: y'\n---\n# A card\n", b"---\na: &x [*x]\n---\n"],
    "config": [b'{"peft_type":"LORA","r":4,"lora_alpha":8.5,"target_modules":["q_proj"],"rank_pattern":{"^k.*":2}}'],
    "pattern": [b"model\\.layers\\.(0|10)\\..*", b"(.*\\.)?(q|v)_proj", b"^(?!.*x).*[a-z]{2,3}$"],
}
"""Valid inputs, which mutations begin with."""
