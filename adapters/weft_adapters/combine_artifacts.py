"""Artifacts of one base merged into one, which names its parts by digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import weft
from weft_adapters.binding import bind
from weft_adapters.combination import KINDS_THAT_COMBINE, Recipe, combine
from weft_adapters.composition import KINDS_THAT_SUM
from weft_adapters.kinds.kind import Adapter
from weft_adapters.saving import check_new, save
from weft_registry import artifact
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.manifest import Manifest


@dataclass(frozen=True)
class Part:
    """One artifact to merge."""

    directory: Path
    reference: str
    """What it was asked for by, for people."""
    weight: float


def combine_artifacts(
    parts: Sequence[Part],
    recipe: Recipe,
    base: BaseSpec,
    output: Path,
    *,
    name: str | None = None,
    license: str | None = None,
) -> Manifest:
    """Writes the merged artifact at `output`, which must be new, and returns its manifest.

    `license` None takes the parts' own, where they have the same one. Raises `PreconditionError` for a part of another
    base, `UnsupportedError` for a part of a kind that cannot be summed, `InvalidInputError` for parts that the recipe
    cannot merge.
    """
    check_new(output)
    manifests = [artifact.read(part.directory) for part in parts]
    adapters: list[tuple[Adapter[Any], float]] = []
    for part, manifest in zip(parts, manifests, strict=True):
        if manifest.kind not in KINDS_THAT_COMBINE:
            raise UnsupportedError(
                f"{part.reference} is of kind {manifest.kind}; only adapters of the kinds "
                f"{' and '.join(KINDS_THAT_COMBINE)} can be combined{_instead({each.kind for each in manifests})}",
                reason="NOT_COMPOSABLE",
            )
        adapters.append((bind(part.directory, manifest, base, dtype=torch.float32), part.weight))
    combined = combine(adapters, recipe, list(base.linears))
    return save(
        output,
        base,
        kind=combined.kind,
        params=combined.params,
        tensors=combined.tensors,
        name=name or output.absolute().name,
        license=_license(manifests) if license is None else license,
        tokenizer=manifests[0].tokenizer,
        provenance={
            "tool": "weft combine",
            "version": weft.__version__,
            **recipe.as_json(),
            "parts": [
                {
                    "name": manifest.name,
                    "reference": part.reference,
                    "digest": manifest.digest(),
                    "kind": manifest.kind,
                    "weight": repr(part.weight),
                }
                for part, manifest in zip(parts, manifests, strict=True)
            ],
            "parent_version": None,
        },
    )


def _instead(kinds: set[str]) -> str:
    """The way out, where a request can wear parts of these kinds."""
    if kinds <= set(KINDS_THAT_SUM) or kinds == {"bottleneck"}:
        return "; a request can wear these parts together as they are: `weft generate a+b*0.5`"
    return ": leave it out"


def _license(manifests: Sequence[Manifest]) -> str:
    licenses = sorted({manifest.license for manifest in manifests})
    if len(licenses) > 1:
        raise InvalidInputError(
            f"the parts have different licenses ({', '.join(map(repr, licenses))}); say the result's with --license"
        )
    return licenses[0]
