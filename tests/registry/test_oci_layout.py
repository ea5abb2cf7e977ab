"""Versions as ModelPack artifacts in OCI image layouts: as the specifications say, and read by a stock client."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError, InvalidInputError, NotFoundError, PreconditionError, UnsupportedError
from weft_registry.exchange import modelpack, oci_layout
from weft_registry.exchange.oci_layout import entries, read_layout, write_layout
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
ROOM = 1 << 30


@pytest.fixture
def layout(new_artifact: NewArtifact, tmp_path: Path) -> Path:
    write_layout(new_artifact(), tmp_path / "layout", "v1")
    return tmp_path / "layout"


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def manifest_of(layout: Path, tag: str = "v1") -> dict[str, Any]:
    (entry,) = [entry for entry in entries(layout) if entry.tag == tag]
    document: dict[str, Any] = json.loads(blob(layout, entry.digest).read_bytes())
    return document


def replace_manifest(layout: Path, document: dict[str, Any]) -> None:
    """Puts another manifest in the place of the only one, with its right digest."""
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0].update(digest=f"sha256:{digest}", size=len(data))
    (layout / "index.json").write_text(json.dumps(index))


def test_the_layout_is_what_the_specifications_say(layout: Path, new_artifact: NewArtifact) -> None:
    """OCI image layout 1.0.0, image manifest with an artifact type, ModelPack's media types: byte by byte."""
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert {path.name for path in layout.iterdir()} == {"oci-layout", "index.json", "blobs"}
    for path in (layout / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    index = json.loads((layout / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    (descriptor,) = index["manifests"]
    assert descriptor["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert descriptor["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert descriptor["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    assert blob(layout, descriptor["digest"]).stat().st_size == descriptor["size"]
    manifest = json.loads(blob(layout, descriptor["digest"]).read_bytes())
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == descriptor["mediaType"]
    assert manifest["artifactType"] == descriptor["artifactType"]
    source = new_artifact()
    version = artifact.read(source)
    assert manifest["annotations"]["dev.weft.version.digest"] == version.digest()
    assert manifest["annotations"]["org.opencontainers.image.created"] == "2026-01-31T12:00:00Z"
    kinds = {
        "README.md": "application/vnd.cncf.model.doc.v1.raw",
        "adapter_config.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "adapter_manifest.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "adapter_model.safetensors": "application/vnd.cncf.model.weight.v1.raw",
    }
    for layer, (name, media_type) in zip(manifest["layers"], kinds.items(), strict=True):
        data = (source / name).read_bytes()
        assert layer == {
            "mediaType": media_type,
            "digest": "sha256:" + hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "annotations": {"org.opencontainers.image.title": name, "org.cncf.model.filepath": name},
        }
        assert blob(layout, layer["digest"]).read_bytes() == data
    config = json.loads(blob(layout, manifest["config"]["digest"]).read_bytes())
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert manifest["config"]["size"] == blob(layout, manifest["config"]["digest"]).stat().st_size
    # The specification's schema admits no other keys.
    assert config == {
        "descriptor": {
            "name": "test",
            "version": version.digest(),
            "createdAt": "2026-01-31T12:00:00Z",
            "licenses": ["apache-2.0"],
        },
        "config": {"architecture": "transformer", "format": "safetensors", "precision": "float32"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]},
    }


def test_the_same_version_is_the_same_bytes_for_ever(new_artifact: NewArtifact, tmp_path: Path) -> None:
    first = write_layout(new_artifact(), tmp_path / "one", "v1")
    second = write_layout(new_artifact(), tmp_path / "two", "other")
    assert first == second
    for tag, name in (("v1", "three"), ("v1", "one")):
        write_layout(new_artifact(), tmp_path / name, tag)
    one, three = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "three")
    )
    assert one == three


def test_a_stock_client_reads_the_layout(layout: Path) -> None:
    """ORAS's Python client: it validates the layout, and finds every blob that a push to a registry would send."""
    oras = pytest.importorskip("oras.layout", reason="ORAS's Python client is not installed: pip install oras")
    found = oras.Layout(str(layout))
    digests = found.get_ordered_blobs("v1")
    manifest = manifest_of(layout)
    (entry,) = entries(layout)
    wanted = [*(layer["digest"] for layer in manifest["layers"]), manifest["config"]["digest"], entry.digest]
    assert digests == wanted
    assert all(found.blob_exists(digest) for digest in digests)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed: apt-get install skopeo")
def test_skopeo_copies_what_is_in_the_layout(layout: Path, tmp_path: Path) -> None:
    import subprocess

    copy = ["skopeo", "--insecure-policy", "copy", f"oci:{layout}:v1", f"dir:{tmp_path / 'out'}"]
    subprocess.run(copy, check=True, capture_output=True, text=True)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (entry,) = entries(layout)
    assert copied["manifest.json"] == blob(layout, entry.digest).read_bytes()
    for layer in manifest_of(layout)["layers"]:
        name = layer["digest"].removeprefix("sha256:")
        assert hashlib.sha256(copied[name]).hexdigest() == name


def test_the_way_back_gives_the_same_version(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    version = transfer.push(registry, new_artifact(), NAME).version
    transfer.pull(registry, version, tmp_path / "pulled")
    write_layout(tmp_path / "pulled", tmp_path / "layout", "v1")
    back = read_layout(tmp_path / "layout", "v1", tmp_path / "back", ROOM)
    published = transfer.push(registry, back, AdapterName("other", "topics"))
    assert published.version.digest == version.digest
    assert not published.existing


def test_a_layout_holds_several_versions_and_shared_files_once(new_artifact: NewArtifact, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    first = write_layout(new_artifact(), layout, "v1")
    before = {path.name for path in (layout / "blobs" / "sha256").iterdir()}
    second = write_layout(new_artifact(seed=1), layout, "v2")
    added = {path.name for path in (layout / "blobs" / "sha256").iterdir()} - before
    # Weights, manifest, and the two documents: the configuration and the card are those of the first.
    assert len(added) == 4
    assert {entry.tag: entry.digest for entry in entries(layout)} == {"v1": first, "v2": second}
    with pytest.raises(InvalidInputError, match="several manifests"):
        read_layout(layout, "", tmp_path / "any", ROOM)
    with pytest.raises(NotFoundError, match="it has: v1, v2"):
        read_layout(layout, "v3", tmp_path / "any", ROOM)
    moved = write_layout(new_artifact(seed=2), layout, "v2")
    assert {entry.tag: entry.digest for entry in entries(layout)} == {"v1": first, "v2": moved}


def test_what_others_put_into_an_index_stays(layout: Path, new_artifact: NewArtifact) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    index["annotations"] = {"theirs": "kept"}
    image = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:" + "a" * 64, "size": 3}
    index["manifests"].append(image)
    (layout / "index.json").write_text(json.dumps(index))
    write_layout(new_artifact(seed=1), layout, "v2")
    after = json.loads((layout / "index.json").read_bytes())
    assert after["annotations"] == {"theirs": "kept"}
    assert image in after["manifests"]
    assert [entry.tag for entry in entries(layout)] == ["v1", "v2"]


def test_a_directory_that_is_no_layout_is_left_alone(new_artifact: NewArtifact, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(PreconditionError, match="no OCI image layout"):
        write_layout(new_artifact(), tmp_path / "mine", "v1")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(NotFoundError, match="no OCI image layout"):
        entries(tmp_path / "mine")
    with pytest.raises(InvalidInputError, match="tag"):
        write_layout(new_artifact(), tmp_path / "new", "not a tag")


def test_damage_is_noticed_wherever_it_is(layout: Path, tmp_path: Path) -> None:
    manifest = manifest_of(layout)
    (entry,) = entries(layout)
    for number, digest in enumerate((manifest["layers"][3]["digest"], entry.digest)):
        good = blob(layout, digest).read_bytes()
        blob(layout, digest).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CorruptionError):
            read_layout(layout, "v1", tmp_path / f"flipped{number}", ROOM)
        blob(layout, digest).write_bytes(good[:-1])
        with pytest.raises(CorruptionError):
            read_layout(layout, "v1", tmp_path / f"cut{number}", ROOM)
        blob(layout, digest).unlink()
        with pytest.raises(CorruptionError):
            read_layout(layout, "v1", tmp_path / f"gone{number}", ROOM)
        blob(layout, digest).write_bytes(good)
    read_layout(layout, "v1", tmp_path / "right", ROOM)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"org.cncf.model.filepath": "../../escape.json"}, InvalidInputError),
        ({"org.cncf.model.filepath": "/etc/passwd"}, InvalidInputError),
        ({"org.cncf.model.filepath": "model.py"}, InvalidInputError),
        ({"org.cncf.model.filepath": "README.md"}, InvalidInputError),
        ({}, InvalidInputError),
        ({"org.cncf.model.filepath": 7}, InvalidInputError),
    ],
)
def test_a_layer_is_never_written_where_it_should_not_be(
    layout: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    document = manifest_of(layout)
    document["layers"][3]["annotations"] = change
    replace_manifest(layout, document)
    with pytest.raises(error):
        read_layout(layout, "v1", tmp_path / "out" / "files", ROOM)
    assert not (tmp_path / "escape.json").exists()
    assert not (tmp_path / "out" / "files").exists(), "nothing is written before everything is named"


def test_packed_layers_and_too_large_ones_are_refused(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at most 100 are taken"):
        read_layout(layout, "v1", tmp_path / "out", 100)
    document = manifest_of(layout)
    document["layers"][3]["mediaType"] = "application/vnd.cncf.model.weight.v1.tar+gzip"
    replace_manifest(layout, document)
    with pytest.raises(UnsupportedError, match="only files as they are"):
        read_layout(layout, "v1", tmp_path / "out", ROOM)


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{", b'{"manifests":7}', b'{"manifests":[7]}', b'{"manifests":[{"digest":"sha256:x","size":1}]}'],
)
def test_a_malformed_index_is_refused(layout: Path, index: bytes) -> None:
    (layout / "index.json").write_bytes(index)
    with pytest.raises(InvalidInputError):
        entries(layout)


def test_mixed_precisions_are_not_called_one(new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    manifest = artifact.read(directory)
    data = manifest.canonical_bytes()
    assert json.loads(modelpack.packed(manifest, data).config)["config"]["precision"] == "float32"
    tensors = [*manifest.tensors[:-1], type(manifest.tensors[-1])("z", "F16", (1,), manifest.tensors[-1].sha256)]
    mixed = type(manifest)(**{**vars(manifest), "tensors": tensors})
    assert "precision" not in json.loads(modelpack.packed(mixed, mixed.canonical_bytes()).config)["config"]


def test_where_plain_files_come_from_is_the_manifest_that_lists_them(layout: Path) -> None:
    (entry,) = entries(layout)
    origin = oci_layout.origin_of(layout, "v1")
    assert origin.provenance == {"source": "oci", "manifest": entry.digest}
    assert origin.created == "2026-01-31T12:00:00Z"
