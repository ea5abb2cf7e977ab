"""Artifact directories: what may be in one, and that a manifest describes exactly what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from weft_registry import artifact, digest
from weft_registry.errors import InvalidInputError, NotFoundError

NewArtifact = Callable[..., Path]


def test_a_manifest_lists_every_file_and_every_tensor(new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    manifest = artifact.read(directory)
    assert [file.path for file in manifest.files] == [artifact.CARD, artifact.CONFIG, artifact.WEIGHTS]
    for file in manifest.files:
        assert file.sha256 == digest.of_file(directory / file.path)
        assert file.size == (directory / file.path).stat().st_size
    assert len(manifest.tensors) == 12
    assert [tensor.name for tensor in manifest.tensors] == sorted(tensor.name for tensor in manifest.tensors)


def test_the_same_files_give_the_same_digest(tmp_path: Path, new_artifact: NewArtifact) -> None:
    assert artifact.read(new_artifact(seed=3)).digest() == artifact.read(new_artifact(seed=3)).digest()
    assert artifact.read(new_artifact(seed=3)).digest() != artifact.read(new_artifact(seed=4)).digest()


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "training_args.bin",
        "model.pt",
        "model.pth",
        "a.pkl",
        "a.ckpt",
        "run.py",
        "a.npz",
        "a.so",
        "other.safetensors",
        "noextension",
        ".hidden.json",
        "a b.json",
        "é.json",
        "á.json",
        "a\nb.json",
        "a\\b.json",
        "x" * 130 + ".json",
        "a..b.json",
        "ADAPTER_CONFIG.json",
        "Adapter_Manifest.json",
        "optimizer.PT",
        "a.tar",
        "loss.svg",
    ],
)
def test_a_file_that_may_not_be_there_is_refused_by_name(name: str, new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    (directory / name).write_bytes(b"{}")
    with pytest.raises(InvalidInputError) as caught:
        artifact.files_of(directory)
    assert caught.value.violations


@pytest.mark.parametrize("path", ["../x.json", "/etc/x.json", "a/b.json", "..", ".", "", "a\\..\\x.json", "C:x.json"])
def test_an_unsafe_path_in_a_manifest_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        artifact.media_type(path)
    assert artifact.check_paths([*artifact.REQUIRED, path])


def test_links_and_directories_are_refused(new_artifact: NewArtifact, tmp_path: Path) -> None:
    directory = new_artifact()
    (tmp_path / "secret.json").write_text("{}")
    (directory / "link.json").symlink_to(tmp_path / "secret.json")
    (directory / "sub").mkdir()
    with pytest.raises(InvalidInputError) as caught:
        artifact.files_of(directory)
    assert {"link.json", "sub"} <= {violation.field for violation in caught.value.violations}


def test_a_link_in_place_of_the_weights_is_refused(new_artifact: NewArtifact, tmp_path: Path) -> None:
    directory = new_artifact()
    (directory / artifact.WEIGHTS).rename(tmp_path / "elsewhere")
    (directory / artifact.WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="regular files"):
        artifact.files_of(directory)


def test_a_model_card_may_have_a_picture(new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    (directory / "loss.png").write_bytes(artifact.PNG_SIGNATURE + b"...")
    assert "loss.png" in [path.name for path in artifact.files_of(directory)]
    assert artifact.media_type("loss.png") == "image/png"


def test_missing_duplicate_and_too_many_files_are_all_named() -> None:
    assert [v.description for v in artifact.check_paths([artifact.CONFIG])] == [f"{artifact.WEIGHTS} is missing"]
    assert artifact.check_paths([*artifact.REQUIRED, "a.json", "a.json"])
    assert artifact.check_paths([*artifact.REQUIRED, "a.json", "A.json"])
    assert artifact.check_paths([*artifact.REQUIRED, *(f"a{i}.txt" for i in range(artifact.MAX_FILES))])
    assert not artifact.check_paths([*artifact.REQUIRED, artifact.CARD])


def test_no_directory_and_no_manifest_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no artifact directory"):
        artifact.files_of(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="--base"):
        artifact.read(tmp_path)
