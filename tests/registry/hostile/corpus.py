"""The whole corpus, by name."""

from __future__ import annotations

from itertools import chain

from tests.registry.hostile import configs, files, fusions, manifests, weights
from tests.registry.hostile.case import Case


def _by_name() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for case in chain(weights.CASES, manifests.CASES, configs.CASES, files.CASES, fusions.CASES):
        if case.name in found:
            raise ValueError(f"two cases are named {case.name}")
        found[case.name] = case
    return found


CASES = _by_name()
