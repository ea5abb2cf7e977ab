"""Suggestions for a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names in `known` most like `name`, best first."""
    # Imported here: few names are missed.
    import difflib

    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
