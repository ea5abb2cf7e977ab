"""Artifacts of kinds that PEFT does not have, and of one that is made over others: what is in them, and what a registry
refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.registry.lab import BASE, add_base, make_artifact, random_tensors, safetensors_bytes, seal
from weft_client.peft_export import export_peft
from weft_registry import artifact, peft_format, validation
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError, UnsupportedError
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_registry.kinds.bottleneck import BottleneckParams
from weft_registry.kinds.fusion import FusionParams
from weft_registry.parts import parts_of, resolve_parts
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import pull, push

BOTTLENECK = BottleneckParams(4, "relu", "sum", ("mlp",), (0, 1), 0.5)


def write(directory: Path, kind: str, params: Any, seed: int = 0, base: Any = BASE.fingerprint) -> Path:
    directory.mkdir(parents=True)
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(random_tensors(kind, seed, params)))
    manifest = artifact.describe(
        directory,
        kind=kind,
        adapter_block=kind_schema(kind).block(params),
        base=base,
        name=f"{kind}-{seed}",
        created="2026-01-31T12:00:00Z",
    )
    artifact.write_manifest(directory, manifest)
    return directory


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    home = Home(tmp_path / "home")
    add_base(home)
    registry = EmbeddedRegistry(home)
    yield registry
    registry.close()


def published(registry: EmbeddedRegistry, directory: Path, name: str) -> Reference:
    version = push(registry, directory, AdapterName.parse(name)).version
    return Reference(version.adapter, digest=version.digest)


def fused(parts: tuple[Reference, ...], **changes: Any) -> FusionParams:
    return replace(FusionParams(parts, "sum", ("mlp",), (0, 1), True), **changes)


@pytest.mark.parametrize(
    "params",
    [
        BOTTLENECK,
        BottleneckParams(1, "swish", "output", ("attention", "mlp"), (1,), 1.0),
        BottleneckParams(16, "gelu", "input", ("attention",), (0,), -0.25),
    ],
)
def test_a_block_is_read_back_as_it_was_written(params: BottleneckParams) -> None:
    schema = kind_schema("bottleneck")
    assert schema.parse(json.loads(json.dumps(schema.block(params)))) == params


def test_an_artifact_without_peft_holds_manifest_and_weights_and_comes_back_whole(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    directory = write(tmp_path / "made", "bottleneck", BOTTLENECK)
    validation.validate_directory(directory, BASE)
    reference = published(registry, directory, "acme/bottle")
    pull(registry, str(reference), tmp_path / "pulled")
    assert sorted(path.name for path in (tmp_path / "pulled").iterdir()) == [artifact.MANIFEST, artifact.WEIGHTS]


def test_a_peft_configuration_in_it_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "made", "bottleneck", BOTTLENECK)
    (directory / artifact.CONFIG).write_text("{}")
    with pytest.raises(InvalidInputError, match="PEFT has no adapters of the kind bottleneck"):
        validation.validate_directory(directory, BASE)


def test_a_kind_that_peft_has_still_needs_one(tmp_path: Path) -> None:
    directory = make_artifact(tmp_path / "lora")
    (directory / artifact.CONFIG).unlink()
    with pytest.raises(InvalidInputError, match=r"adapter_config\.json is missing"):
        seal(directory)


def test_export_for_peft_refuses_it_by_name_and_writes_nothing(tmp_path: Path) -> None:
    directory = write(tmp_path / "made", "bottleneck", BOTTLENECK)
    with pytest.raises(UnsupportedError, match="PEFT has no adapters of the kind bottleneck"):
        export_peft(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedError, match="bottleneck"):
        peft_format.to_peft("bottleneck", BOTTLENECK, BASE)


def test_pulling_one_again_fetches_nothing(
    registry: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = str(published(registry, write(tmp_path / "made", "bottleneck", BOTTLENECK), "acme/one"))
    version = pull(registry, reference, tmp_path / "out")

    def fetch(*_: object) -> None:
        pytest.fail("a file was fetched again")

    monkeypatch.setattr(registry, "read_blob", fetch)
    assert pull(registry, reference, tmp_path / "out").digest == version.digest


def test_peft_types_that_are_named_as_supported_are_pefts() -> None:
    with pytest.raises(UnsupportedError) as caught:
        peft_format.kind_of({"peft_type": "NOTHING"})
    assert "lora" in caught.value.message
    assert "bottleneck" not in caught.value.message


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no size": ({"bottleneck_size": 0}, "bottleneck_size"),
    "a function that is not known": ({"non_linearity": "relu6"}, "non_linearity"),
    "what cannot be read": ({"reads": "logits"}, "reads"),
    "a place twice": ({"places": ["mlp", "mlp"]}, "places"),
    "places out of order": ({"places": ["mlp", "attention"]}, "places"),
    "no place": ({"places": []}, "places"),
    "a layer twice": ({"layers": [1, 1]}, "layers"),
    "layers out of order": ({"layers": [1, 0]}, "layers"),
    "a layer that the base lacks": ({"layers": [0, 2]}, "no layer 2"),
    "no layers": ({"layers": []}, "layers"),
    "a scaling that is no decimal": ({"scaling": "much"}, "scaling"),
    "an unknown key": ({"dropout": "0"}, "dropout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_block_is_refused_by_its_key(case: str) -> None:
    changes, message = REFUSED[case]
    schema = kind_schema("bottleneck")
    with pytest.raises(InvalidInputError, match=message):
        schema.tensors(schema.parse({**schema.block(BOTTLENECK), **changes}), BASE)


def test_a_tensor_of_another_width_is_refused_where_the_base_is_known(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    tensors = random_tensors("bottleneck", 0, BOTTLENECK)
    name = "model.layers.1.mlp.adapter_up.bias"
    directory = write(tmp_path / "made", "bottleneck", BOTTLENECK)
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes({**tensors, name: tensors[name][:-1]}))
    block = kind_schema("bottleneck").block(BOTTLENECK)
    manifest = artifact.describe(directory, kind="bottleneck", adapter_block=block, base=BASE.fingerprint, name="x")
    artifact.write_manifest(directory, manifest)
    with pytest.raises(InvalidInputError, match=r"mlp\.adapter_up\.bias.*\(31\)"):
        push(registry, directory, AdapterName.parse("acme/bad"))


def test_a_fusion_is_published_over_published_parts_only(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    one = published(registry, write(tmp_path / "one", "bottleneck", BOTTLENECK, 1), "acme/one")
    two = published(
        registry, write(tmp_path / "two", "bottleneck", replace(BOTTLENECK, bottleneck_size=3), 2), "acme/two"
    )
    directory = write(tmp_path / "fused", "fusion", fused((one, two)))
    reference = published(registry, directory, "acme/fused")
    manifest = registry.resolve(str(reference)).manifest
    assert parts_of(manifest) == (one, two)
    assert [version.digest for version in resolve_parts(registry.resolve, manifest)] == [one.digest, two.digest]
    gone = Reference(AdapterName("acme", "gone"), digest="sha256:" + "7" * 64)
    with pytest.raises(NotFoundError, match=r"acme/gone@sha256:7+.*push it first"):
        published(registry, write(tmp_path / "without", "fusion", fused((one, gone))), "acme/without")


def test_a_yanked_part_is_refused_by_name(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    one = published(registry, write(tmp_path / "one", "bottleneck", BOTTLENECK, 1), "acme/one")
    two = published(registry, write(tmp_path / "two", "bottleneck", BOTTLENECK, 2), "acme/two")
    fusion = published(registry, write(tmp_path / "fused", "fusion", fused((one, two))), "acme/fused")
    registry.yank(str(two), "leaked")
    with pytest.raises(PreconditionError, match=r"acme/two@.*yanked \(leaked\)") as caught:
        resolve_parts(registry.resolve, registry.resolve(str(fusion)).manifest)
    assert caught.value.reason == "YANKED"
    with pytest.raises(PreconditionError, match="yanked"):
        published(registry, write(tmp_path / "again", "fusion", fused((one, two)), 5), "acme/again")


def test_parts_of_another_base_kind_or_shape_are_refused_by_name(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    one = published(registry, write(tmp_path / "one", "bottleneck", BOTTLENECK, 1), "acme/one")
    other_base = replace(BASE.fingerprint, weights_sha256="sha256:" + "9" * 64)
    wrong = {
        "for the base": write(tmp_path / "base", "bottleneck", BOTTLENECK, 2, other_base),
        "of the kind lora": make_artifact(tmp_path / "lora"),
        "its reads are output": write(tmp_path / "reads", "bottleneck", replace(BOTTLENECK, reads="output"), 3),
        "its layers are": write(tmp_path / "layers", "bottleneck", replace(BOTTLENECK, layers=(1,)), 4),
    }
    for number, (message, directory) in enumerate(wrong.items()):
        part = published(registry, directory, f"acme/wrong-{number}")
        fusion = write(tmp_path / f"fusion-{number}", "fusion", fused((one, part)))
        with pytest.raises((InvalidInputError, PreconditionError), match=message) as caught:
            published(registry, fusion, "acme/fused")
        assert f"acme/wrong-{number}@" in caught.value.message


@pytest.mark.parametrize(
    "parts",
    [[], ["acme/one"], ["acme/one:v1@sha256:" + "1" * 64], ["acme/one@sha256:" + "1" * 64, "b/two@sha256:" + "1" * 64]],
    ids=["none", "no digest", "a tag", "one version twice"],
)
def test_parts_are_named_by_digest_once_each(parts: list[str]) -> None:
    good = Reference.parse("acme/one@sha256:" + "1" * 64)
    schema = kind_schema("fusion")
    with pytest.raises(InvalidInputError, match="parts"):
        schema.parse({**schema.block(fused((good,))), "parts": parts})
