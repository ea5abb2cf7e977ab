"""The reference grammar: what parses comes back, what does not is refused, and nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from weft_registry.errors import InvalidInputError
from weft_registry.reference import LATEST, AdapterName, Reference

names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
labels = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20}[A-Za-z0-9_])?", fullmatch=True).filter(
    lambda text: not text.startswith("sha256")
)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(names, names, st.none() | labels, st.none() | digests)
def test_what_is_written_parses_back(namespace: str, name: str, label: str | None, digest: str | None) -> None:
    text = f"{namespace}/{name}" + (f":{label}" if label else "") + (f"@{digest}" if digest else "")
    parsed = Reference.parse(text)
    assert parsed.adapter == AdapterName(namespace, name)
    assert parsed.digest == digest
    assert parsed.label == (label or (None if digest else LATEST))
    assert Reference.parse(str(parsed)) == parsed


@given(names, names, labels)
def test_at_label_is_a_spelling_of_colon_label(namespace: str, name: str, label: str) -> None:
    assert Reference.parse(f"{namespace}/{name}@{label}") == Reference.parse(f"{namespace}/{name}:{label}")


@given(st.text(max_size=60))
@example("a/b:c\n")
@example("a/b\n")
@example("a/b@sha256:" + "0" * 64 + "\n")
@example("../b")
@example("a/..")
def test_any_text_is_parsed_or_refused_and_what_parses_is_safe_in_a_path(text: str) -> None:
    try:
        parsed = Reference.parse(text)
    except InvalidInputError:
        return
    for part in (parsed.adapter.namespace, parsed.adapter.name, parsed.label or "x"):
        assert part.isascii()
        assert part.isprintable()
        assert not set(part) & set("/\\: ")
        assert part not in ("", ".", "..")
    assert Reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "/b",
        "a/",
        "A/b",
        "a/b:",
        "a/b@",
        "a/b/c",
        "a b/c",
        "a/b:x@y",
        "a/b@sha256:12",
        "a/b:sha256",
        "é/b",
        "a/b@sha256:" + "G" * 64,
        "a/b:" + "x" * 129,
        "a" * 97 + "/b",
        "a/b:..",
        "a/.b",
        "-a/b",
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Reference.parse(text)
