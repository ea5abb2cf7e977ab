"""Weights looked at as they arrive are those that a scan of the whole file finds sound, and no others."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.backends.fresh import BUCKET
from weft_registry import arriving, artifact, digest, headers, transfer
from weft_registry.arriving import ArrivingWeights, SoundWeights
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.store import BlobStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError
from weft_registry.reference import AdapterName

TENSORS = {
    "a": np.arange(7, dtype="f4"),
    "b": np.ones((3, 5), "f2"),
    "c": np.arange(9, dtype="u1"),
    "d": np.linspace(-1, 1, 11),
}
DATA = save(TENSORS)
PIECES = (1, 3, 7, 64, 1000, 1 << 20)


@pytest.fixture(autouse=True)
def _small_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "MIN_BYTES", 1)


def table_of(data: bytes) -> list[str]:
    header = headers.read_header(io.BytesIO(data), len(data))
    return [scan.sha256 for scan in headers.scan_tensors(io.BytesIO(data), header)]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def arrived(data: bytes, size: int) -> ArrivingWeights:
    weights = ArrivingWeights(len(data))
    for piece in pieces(data, size):
        weights.update(piece)
    return weights


def unpadded(data: bytes) -> bytes:
    """The same tensors, at places that no number is aligned to."""
    (length,) = struct.unpack("<Q", data[:8])
    head = json.dumps(json.loads(data[8 : 8 + length])).encode()
    head += b" " * (1 - len(head) % 2)
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("data", [DATA, unpadded(DATA)], ids=["aligned", "not aligned"])
def test_the_table_is_that_of_the_whole_file(data: bytes, size: int) -> None:
    assert arrived(data, size).tensors() == table_of(data)


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize(
    ("name", "place", "value"), [("a", 0, "nan"), ("a", 6, "inf"), ("b", 4, "-inf"), ("d", 10, "nan"), ("d", 0, "inf")]
)
def test_what_is_no_number_is_seen_wherever_a_piece_ends(size: int, name: str, place: int, value: str) -> None:
    tensors = {key: array.copy() for key, array in TENSORS.items()}
    tensors[name].reshape(-1)[place] = float(value)
    assert arrived(save(tensors), size).tensors() is None


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"A card.\n" * 40, struct.pack("<Q", 1 << 62) + DATA[8:], DATA[:-1], DATA + b"x", b"\0" * 64],
    ids=["nothing", "a byte", "a card", "a huge header", "an end too early", "an end too late", "zeros"],
)
def test_what_is_no_file_of_weights_is_known_as_none(data: bytes, size: int) -> None:
    assert arrived(data, size).tensors() is None


def test_what_has_arrived_in_part_is_known_as_none() -> None:
    weights = ArrivingWeights(len(DATA))
    weights.update(DATA[:-1])
    assert weights.tensors() is None
    weights.update(DATA[-1:])
    assert weights.tensors() == table_of(DATA)


def test_small_files_are_left_to_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "MIN_BYTES", len(DATA) + 1)
    assert arrived(DATA, 100).tensors() is None


def put(store: BlobStore, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(data)
    store.put_file(path, digest.of_bytes(data), len(data))


def upload(store: BlobStore, data: bytes, size: int) -> None:
    started = store.start_upload(digest.of_bytes(data), len(data)).upload_id
    at = 0
    for piece in pieces(data, size):
        at = store.write_upload(started, at, piece).committed_bytes
    store.finish_upload(started)


@pytest.mark.parametrize("size", [100, 1 << 20])
@pytest.mark.parametrize("how", ["put", "uploaded"])
def test_a_store_knows_what_arrived_and_believes_no_other_table(how: str, size: int, tmp_path: Path) -> None:
    store, table = LocalBlobStore(tmp_path / "store"), table_of(DATA)
    assert not store.knows_sound(digest.of_bytes(DATA), table)
    if how == "put":
        put(store, DATA, tmp_path)
    else:
        upload(store, DATA, size)
    assert store.knows_sound(digest.of_bytes(DATA), table)
    assert not store.knows_sound(digest.of_bytes(DATA), table[::-1])
    assert not store.knows_sound(digest.of_bytes(DATA), [])
    assert not store.knows_sound(digest.of_bytes(b"other"), table)
    assert not LocalBlobStore(tmp_path / "store").knows_sound(digest.of_bytes(DATA), table), "another process"


def test_an_upload_that_another_process_had_a_part_in_is_not_known(tmp_path: Path) -> None:
    store, other = LocalBlobStore(tmp_path), LocalBlobStore(tmp_path)
    started = store.start_upload(digest.of_bytes(DATA), len(DATA)).upload_id
    other.write_upload(started, 0, DATA[:50])
    store.write_upload(started, 50, DATA[50:])
    store.finish_upload(started)
    assert not store.knows_sound(digest.of_bytes(DATA), table_of(DATA))


def test_only_so_many_files_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "MAX_REMEMBERED", 2)
    sound = SoundWeights()
    for name in "abc":
        sound.remember(name, arrived(DATA, 100))
    assert [sound.knows(name, table_of(DATA)) for name in "abc"] == [False, True, True]


def test_a_publish_does_not_read_what_it_saw_arrive(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the weights were read again")

    directory = new_artifact()
    if not BUCKET:  # A bucket is asked for what it has kept.
        monkeypatch.setattr(headers, "scan_tensors", never)
    version = transfer.push(registry, directory, AdapterName("team", "support")).version
    assert registry.verify(f"team/support@{version.digest}").problems == ()


def test_another_table_is_refused_for_weights_that_were_seen(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path]
) -> None:
    directory = new_artifact()
    transfer.push(registry, directory, AdapterName("team", "support"))
    manifest = artifact.read(directory)
    lying = replace(manifest.tensors[0], sha256="sha256:" + "0" * 64)
    artifact.write_manifest(directory, replace(manifest, tensors=[lying, *manifest.tensors[1:]]))
    with pytest.raises(InvalidInputError) as caught:
        transfer.push(registry, directory, AdapterName("team", "other"))
    assert [violation.field for violation in caught.value.violations] == [f"tensors[{lying.name}].sha256"]
