"""Several adapters worn by one request, each with a weight, and the identity of what they are together.

Written as one string, parts are joined by `+`, each a reference and, unless it is 1, `*` and its weight:

    acme/style*0.5+acme/topics:production

Neither sign can be part of a reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.schema import format_decimal
from weft_registry.reference import Reference

MAX_PARTS = 16


@dataclass(frozen=True)
class Part:
    """One adapter of a composition."""

    reference: str
    weight: float = 1.0

    def __str__(self) -> str:
        if self.weight == 1:
            return self.reference
        # "1e+30" would be two parts.
        return f"{self.reference}*{format_decimal(self.weight).replace('+', '')}"


def parse_parts(text: str) -> tuple[Part, ...]:
    """The parts that a string names; a plain reference is one part. Raises `InvalidInputError` naming the part."""
    parts: list[Part] = []
    for piece in text.split("+"):
        reference, times, weight = (part.strip() for part in piece.partition("*"))
        if not reference and text.strip():
            raise InvalidInputError(
                f"{text[:200]!r}: expected an adapter name on both sides of each + and before each *"
            )
        Reference.parse(reference)
        try:
            number = float(weight) if times else 1.0
        except ValueError:
            raise InvalidInputError(
                f"{piece.strip()[:200]!r}: after the * comes a number, such as {reference}*0.5"
            ) from None
        parts.append(Part(reference, number))
    check_parts(parts)
    return tuple(parts)


def check_parts(parts: Sequence[Part]) -> None:
    """Raises `InvalidInputError` for more parts than a request may wear, or a weight that is not finite."""
    if len(parts) > MAX_PARTS:
        raise InvalidInputError(f"{len(parts)} adapters in one request; at most {MAX_PARTS}: combine them beforehand")
    for part in parts:
        if not math.isfinite(part.weight):
            raise InvalidInputError(f"the weight of {part.reference} is {part.weight}: expected a finite number")


def describe(parts: Sequence[Part]) -> str:
    """The parts as one string: the inverse of `parse_parts`."""
    return "+".join(map(str, parts))


def composition_digest(parts: Sequence[tuple[str, float]]) -> str:
    """The identity of adapters worn together, from their digests and weights in order. One adapter with weight 1 is
    itself."""
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    block = {"composition": [[digest, format_decimal(weight)] for digest, weight in parts]}
    return digests.of_bytes(canonical.dumps(block))
