"""Hostile and inconsistent artifacts: each refused with a reason, and nothing stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.registry.blob_lab import lab_of
from tests.registry.lab import (
    BASE,
    PARAMS,
    add_base,
    random_tensors,
    raw_safetensors,
    safetensors_bytes,
    seal,
    upload_all,
)
from weft_registry import artifact, canonical, transfer, validation
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    CorruptionError,
    InvalidInputError,
    PreconditionError,
    UnsupportedError,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.kinds import kind_schema
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "hostile")
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def tensors_with(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the weights, honestly described by the manifest."""
    tensors = random_tensors("lora")
    change(tensors)
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(tensors))
    seal(directory)


def config_with(directory: Path, **changes: Any) -> None:
    path = directory / artifact.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    seal(directory)


def manifest_with(directory: Path, **changes: Any) -> None:
    artifact.write_manifest(directory, replace(artifact.read(directory), **changes))


def block_with(directory: Path, **changes: Any) -> None:
    manifest_with(directory, adapter={**kind_schema("lora").block(PARAMS["lora"]), **changes})


def file_with(directory: Path, **changes: Any) -> None:
    files = list(artifact.read(directory).files)
    manifest_with(directory, files=[replace(files[0], **changes), *files[1:]])


def tensor_entry_with(directory: Path, **changes: Any) -> None:
    tensors = list(artifact.read(directory).tensors)
    manifest_with(directory, tensors=[replace(tensors[0], **changes), *tensors[1:]])


def put_nan(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[A0][1, 1] = value

    return change


def rename(tensors: dict[str, Any]) -> None:
    tensors[A0.replace("q_proj", "x_proj")] = tensors.pop(A0)


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN": (lambda d: tensors_with(d, put_nan(float("nan"))), "1 element is NaN or infinite"),
    "infinity": (lambda d: tensors_with(d, put_nan(float("-inf"))), "1 element is NaN or infinite"),
    "missing tensor": (lambda d: tensors_with(d, lambda t: t.pop(A0)), "missing"),
    "unexpected tensor": (lambda d: tensors_with(d, lambda t: t.update({"x": np.ones(2, "f4")})), "unexpected"),
    "renamed tensor": (lambda d: tensors_with(d, rename), "unexpected"),
    "wrong rank": (lambda d: tensors_with(d, lambda t: t.update({A0: np.ones((5, 32), "f4")})), "expected BF16"),
    "transposed": (lambda d: tensors_with(d, lambda t: t.update({A0: t[A0].T.copy()})), "(32, 4)"),
    "integers": (
        lambda d: (
            (d / artifact.WEIGHTS).write_bytes(
                raw_safetensors(
                    b'{"' + A0.encode() + b'":{"dtype":"I8","shape":[4,32],"data_offsets":[0,128]}}', b"\0" * 128
                )
            ),
            seal(d),
        ),
        "I8",
    ),
    "wrong file size": (lambda d: file_with(d, size=3), "size"),
    "wrong media type": (lambda d: file_with(d, media_type="application/x-python"), "media_type"),
    "unsafe path": (lambda d: file_with(d, path="../README.md"), "flat directory"),
    "file listed twice": (
        lambda d: manifest_with(d, files=[*artifact.read(d).files, artifact.read(d).files[0]]),
        "collides",
    ),
    "no weights listed": (lambda d: manifest_with(d, files=list(artifact.read(d).files)[:2]), "is missing"),
    "wrong tensor digest": (lambda d: tensor_entry_with(d, sha256="sha256:" + "0" * 64), "its bytes have"),
    "wrong tensor shape": (lambda d: tensor_entry_with(d, shape=(1, 2)), "the manifest says F32 (1, 2)"),
    "wrong tensor dtype": (lambda d: tensor_entry_with(d, dtype="BF16"), "the manifest says BF16"),
    "wrong tensor name": (lambda d: tensor_entry_with(d, name="a"), "no such tensor"),
    "tensor table cut short": (lambda d: manifest_with(d, tensors=artifact.read(d).tensors[1:]), "no such tensor"),
    "tensor table not sorted": (lambda d: manifest_with(d, tensors=artifact.read(d).tensors[::-1]), "sorted by name"),
    "rank that disagrees": (lambda d: block_with(d, r=8), "expected BF16"),
    "unknown parameter": (lambda d: block_with(d, extra=1), "unknown key"),
    "alpha as a number in text": (lambda d: block_with(d, alpha="nan"), "decimal"),
    "alpha of the config differs": (lambda d: block_with(d, alpha="16"), "scaling"),
    "rsLoRA differs": (lambda d: block_with(d, use_rslora=True), "scaling"),
    "a module too few": (
        lambda d: block_with(d, target_modules=list(BASE.linears)[1:]),
        "it belongs to no target module",
    ),
    "another kind": (
        lambda d: manifest_with(d, kind="prefix", adapter=kind_schema("prefix").block(PARAMS["prefix"])),
        "",
    ),
    "DoRA in the config": (lambda d: config_with(d, use_dora=True), "use_dora"),
    "remote code in the config": (lambda d: config_with(d, auto_mapping={"base_model_class": "X"}), "auto_mapping"),
    "unknown key in the config": (lambda d: config_with(d, gate=2), "unknown key 'gate'"),
    "config that is no JSON": (lambda d: ((d / artifact.CONFIG).write_text("{"), seal(d)), "not UTF-8 JSON"),
    "config with a key twice": (lambda d: ((d / artifact.CONFIG).write_text('{"r":1,"r":2}'), seal(d)), "twice"),
    "a picture that is none": (
        lambda d: ((d / "loss.png").write_bytes(b"<svg onload='run()'/>"), seal(d)),
        "not a PNG picture",
    ),
    "config of another method": (lambda d: config_with(d, peft_type="CPT"), "CPT"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_refused_artifact_stores_nothing(
    case: str, home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    change, words = CASES[case]
    change(directory)
    with pytest.raises((InvalidInputError, UnsupportedError)) as caught:
        transfer.push(registry, directory, NAME)
    told = [caught.value.message, *(violation.description for violation in caught.value.violations)]
    assert any(words in text for text in told)
    # Digests of the weights are looked at where they arrive: what was sent is of no version, and collected.
    assert lab_of(home).held() == {} or case == "wrong tensor digest"
    assert registry.list_adapters() == []


@pytest.mark.parametrize("case", CASES)
def test_a_client_that_does_not_validate_is_refused_all_the_same(
    case: str, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    CASES[case][0](directory)
    sealed = seal(new_artifact())
    registry.upload(sealed / artifact.CARD, artifact.read(sealed).files[0].sha256, artifact.read(sealed).files[0].size)
    manifest = artifact.read(directory)
    for file in manifest.files:
        path = directory / Path(file.path).name
        registry.upload(path, file.sha256, path.stat().st_size)
    with pytest.raises((InvalidInputError, UnsupportedError)):
        registry.publish(NAME, manifest.canonical_bytes(), tags=["v1"])
    assert registry.list_adapters() == []


def test_every_violation_is_named_not_only_the_first(new_artifact: NewArtifact) -> None:
    directory = new_artifact()

    def change(tensors: dict[str, Any]) -> None:
        rename(tensors)
        tensors["y"] = np.ones(1, "f4")

    tensors_with(directory, change)
    with pytest.raises(InvalidInputError) as caught:
        validation.validate_directory(directory, BASE)
    assert {violation.field for violation in caught.value.violations} == {
        f"tensors[{A0}]",
        f"tensors[{A0.replace('q_proj', 'x_proj')}]",
        "tensors[y]",
    }


def test_tensors_that_are_no_numbers_are_all_named_and_the_way_out_once(new_artifact: NewArtifact) -> None:
    directory = new_artifact()

    def change(tensors: dict[str, Any]) -> None:
        for name in list(tensors)[:3]:
            tensors[name][:, 1] = float("nan")

    tensors_with(directory, change)
    for check in (
        lambda: validation.validate_directory(directory, BASE),
        lambda: validation.check_directory(directory),
    ):
        with pytest.raises(InvalidInputError, match=r"\d elements are NaN or infinite \(train again") as caught:
            check()
        assert len(caught.value.violations) == 3
        assert caught.value.message.count("NaN or infinite") == 3
        assert caught.value.message.count("lower learning rate, or from an earlier checkpoint") == 1


def test_a_manifest_that_is_not_canonical_is_refused(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    data = upload_all(registry, new_artifact())
    spaced = json.dumps(json.loads(data), indent=1).encode()
    with pytest.raises(InvalidInputError, match="canonical"):
        registry.publish(NAME, spaced)


def test_an_unknown_kind_is_unsupported(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    manifest_with(directory, kind="telepathy")
    with pytest.raises(UnsupportedError, match=r"lora.*prefix.*prompt.*qalora"):
        registry.publish(NAME, upload_all(registry, directory))


BASE_CHANGES: dict[str, Any] = {
    "config": {"config_sha256": "sha256:" + "9" * 64},
    "architecture": {"arch": "GPT2LMHeadModel"},
    "quantization": {"quant": replace(BASE.fingerprint.quant, group_size=16)},
}


@pytest.mark.parametrize("case", BASE_CHANGES)
def test_a_manifest_that_contradicts_the_known_base_is_refused(
    case: str, home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    add_base(home)
    directory = new_artifact()
    manifest_with(directory, base=replace(BASE.fingerprint, **BASE_CHANGES[case]))
    with pytest.raises(PreconditionError, match=r"manifest\.base"):
        transfer.push(registry, directory, NAME)
    assert registry.list_adapters() == []


def test_shapes_are_checked_against_the_known_base(
    home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    tensors_with(directory, lambda tensors: tensors.update({A0: np.ones((4, 31), "f4")}))
    # Nobody knows the base here, so nobody can tell that a module with 31 inputs is none of its own.
    transfer.push(registry, directory, NAME)
    add_base(home)
    with pytest.raises(InvalidInputError, match="expected BF16 or F16 or F32 of shape"):
        transfer.push(registry, directory, AdapterName("team", "other"))


def test_a_module_that_the_known_base_lacks_is_refused(
    home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    add_base(home)
    directory = new_artifact()
    other = [name.replace("q_proj", "z_proj") for name in BASE.linears]
    block_with(directory, target_modules=other, rank_pattern={"model.layers.1.mlp.down_proj": 2})
    with pytest.raises(InvalidInputError, match="z_proj"):
        registry.publish(NAME, upload_all(registry, directory))


def test_a_directory_that_changed_after_its_manifest_is_not_sent(
    home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    (directory / artifact.CARD).write_text("another card\n")
    (directory / "more.txt").write_text("x")
    with pytest.raises(InvalidInputError) as caught:
        transfer.push(registry, directory, NAME)
    assert {violation.field for violation in caught.value.violations} == {artifact.CARD, "more.txt"}
    with pytest.raises(CorruptionError):
        upload_all(registry, directory)


def test_weights_that_changed_after_their_manifest_become_nothing(
    home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    # Finite all the same: only their digest tells, and whoever receives them computes it.
    directory = new_artifact()
    (promised,) = (file.sha256 for file in artifact.read(directory).files if file.path == artifact.WEIGHTS)
    weights = directory / artifact.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\0\0\0\1"
    weights.write_bytes(data)
    with pytest.raises(InvalidInputError) as caught:
        transfer.push(registry, directory, NAME)
    assert [(v.field, v.description) for v in caught.value.violations] == [
        (artifact.WEIGHTS, "changed since the manifest was made: its digest is another")
    ]
    assert registry.list_adapters() == []
    assert promised not in lab_of(home).held()


def test_a_huge_number_of_violations_is_capped(new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    tensors_with(directory, lambda t: t.update({f"extra{i}": np.ones(1, "f4") for i in range(500)}))
    with pytest.raises(WeftError) as caught:
        validation.validate_directory(directory, BASE)
    assert len(caught.value.violations) == validation.MAX_VIOLATIONS
    assert canonical.dumps([violation.field for violation in caught.value.violations])
