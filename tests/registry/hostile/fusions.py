"""Hostile fusions: made over parts that are gone, yanked, of another kind, base or shape, or not named by digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.registry.hostile.case import Cases, edit_manifest
from tests.registry.lab import BASE, make_artifact, safetensors_bytes
from weft_registry import artifact, transfer
from weft_registry.api import RegistryApi
from weft_registry.base import BaseFingerprint
from weft_registry.kinds import kind_schema
from weft_registry.kinds.bottleneck import BottleneckParams
from weft_registry.kinds.fusion import FusionParams
from weft_registry.reference import AdapterName, Reference

CASES = Cases()
NAMESPACE = "parts"
CARD = "---\nlicense: mit\ntags: [lora]\n---\n# A card\n"
ZERO = "sha256:" + "0" * 64
PART = BottleneckParams(4, "relu", "output", ("mlp",), (0, 1), 1.0)
OTHER_BASE = replace(BASE.fingerprint, weights_sha256="sha256:" + "7" * 64)


def seal(directory: Path, kind: str, params: Any, seed: int = 0, base: BaseFingerprint = BASE.fingerprint) -> Path:
    """A valid artifact of a kind that PEFT lacks."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    specs = kind_schema(kind).tensors(params, BASE)
    tensors = {name: generator.standard_normal(spec.shape).astype("<f4") for name, spec in specs.items()}
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(tensors))
    (directory / artifact.CARD).write_text("A card.\n")
    manifest = artifact.describe(
        directory,
        kind=kind,
        adapter_block=kind_schema(kind).block(params),
        base=base,
        name="test",
        license="apache-2.0",
        created="2026-01-31T12:00:00Z",
    )
    artifact.write_manifest(directory, manifest)
    return directory


def make_parts(directory: Path) -> None:
    """Makes what the cases name as their parts: artifacts that are valid by themselves."""
    seal(directory / "good", "bottleneck", PART, 1)
    seal(directory / "other", "bottleneck", PART, 2)
    seal(directory / "gone", "bottleneck", PART, 3)
    seal(directory / "foreign", "bottleneck", PART, 4, OTHER_BASE)
    seal(directory / "elsewhere", "bottleneck", replace(PART, layers=(1,)), 5)
    make_artifact(directory / "lora", readme=CARD)
    make_fusion(directory / "fused", directory)


def publish_parts(registry: RegistryApi, directory: Path) -> None:
    """Publishes them, and yanks the one that is to be gone."""
    for name in ("good", "other", "gone", "foreign", "elsewhere", "lora", "fused"):
        transfer.push(registry, directory / name, AdapterName(NAMESPACE, name))
    registry.yank(part_of(directory, "gone"), "trained on the wrong split")


def make_fusion(directory: Path, parts: Path) -> Path:
    """A valid fusion of two published parts."""
    chosen = tuple(Reference.parse(part_of(parts, name)) for name in ("good", "other"))
    return seal(directory, "fusion", FusionParams(chosen, "output", ("mlp",), (0, 1), True))


def part_of(parts: Path, name: str) -> str:
    """How a part is named."""
    return f"{NAMESPACE}/{name}@{artifact.read(parts / name).digest()}"


def _over(change: Callable[[Callable[[str], str], list[str]], list[str]]) -> Callable[[Path], None]:
    """The generator of a fusion over other parts: `change(part, parts)` says which."""

    def make(directory: Path) -> None:
        parts = directory.parent / "parts"

        def edit(document: dict[str, Any]) -> None:
            named = document["adapter"]["parts"]
            document["adapter"]["parts"] = change(lambda name: part_of(parts, name), named)

        edit_manifest(directory, edit)

    return make


for _name, _change, _says in (
    ("a_part_that_is_missing", lambda part, parts: [parts[0], f"{NAMESPACE}/good@{ZERO}"], "push it first"),
    ("a_part_of_nobody", lambda part, parts: [parts[0], f"nobody/nothing@{ZERO}"], "push it first"),
    ("a_part_that_is_yanked", lambda part, parts: [parts[0], part("gone")], "is yanked"),
    ("a_part_of_another_base", lambda part, parts: [parts[0], part("foreign")], "was made for the base"),
    ("a_part_at_other_layers", lambda part, parts: [parts[0], part("elsewhere")], "its layers are"),
    ("a_part_of_another_kind", lambda part, parts: [parts[0], part("lora")], "a fusion is made over"),
    ("a_fusion_of_fusions", lambda part, parts: [parts[0], part("fused")], "a fusion is made over"),
    ("a_fusion_of_itself", lambda part, parts: [parts[0], f"hostile/artifact@{ZERO}"], "push it first"),
    ("a_part_twice", lambda part, parts: [parts[0], parts[0]], "appears twice"),
    (
        "a_part_twice_under_two_names",
        lambda part, parts: [parts[0], parts[0].replace("/good@", "/other@")],
        "one version appears twice",
    ),
    ("a_part_by_alias", lambda part, parts: [parts[0], f"{NAMESPACE}/other:latest"], "without a tag"),
    ("a_part_by_tag_and_digest", lambda part, parts: [parts[0], parts[1].replace("@", ":v1@")], "without a tag"),
    ("a_part_that_is_a_path", lambda part, parts: [parts[0], "../../catalog.db@" + ZERO], "namespace"),
    (
        "a_hundred_parts",
        lambda part, parts: [f"{NAMESPACE}/p{i}@sha256:{i:064x}" for i in range(100)],
        "at most 64",
    ),
    ("no_parts", lambda part, parts: [], "non-empty"),
):
    CASES.add(_name, _over(_change), _says, kind="fusion")
