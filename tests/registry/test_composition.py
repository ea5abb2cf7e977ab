"""Several adapters named as one: parsing, refusals, identity."""

import pytest

from weft_registry.composition import MAX_PARTS, Part, composition_digest, describe, parse_parts
from weft_registry.errors import InvalidInputError

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("acme/a", (Part("acme/a"),)),
        ("acme/a:prod*0.5+acme/b", (Part("acme/a:prod", 0.5), Part("acme/b"))),
        ("acme/a*-1 + acme/a@v3 * 2e-1", (Part("acme/a", -1.0), Part("acme/a@v3", 0.2))),
    ],
)
def test_what_is_parsed_says_itself_again(text: str, parts: tuple[Part, ...]) -> None:
    assert parse_parts(text) == parts
    assert parse_parts(describe(parts)) == parts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("acme/a*", "number"),
        ("acme/a*x+acme/b", "number"),
        ("acme/a*nan", "finite"),
        ("acme/a+", r"'acme/a\+': expected an adapter name on both sides"),
        ("*0.5", "adapter name"),
        ("acme/a+acme", "adapter name"),
        ("+".join(["acme/a"] * (MAX_PARTS + 1)), f"at most {MAX_PARTS}"),
    ],
)
def test_what_cannot_be_worn_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        parse_parts(text)


def test_an_identity_follows_from_digests_weights_and_order() -> None:
    both = composition_digest([(A, 0.5), (B, 1.0)])
    assert both == composition_digest([(A, 0.5), (B, 1.0)])
    others = [[(B, 1.0), (A, 0.5)], [(A, 0.25), (B, 1.0)], [(A, 0.5)], [(A, 0.5), (B, 1.0), (B, 1.0)]]
    assert len({both, A, B, *map(composition_digest, others)}) == 7
    assert composition_digest([(A, 1.0)]) == A
