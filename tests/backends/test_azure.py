"""What is wrong with an Azure account or container is told by name, before anything is stored: on a real server."""

from __future__ import annotations

import time
from pathlib import Path

import obstore
import pytest

from tests.backends.azurite import SCHEME
from tests.backends.fresh import BUCKET
from tests.registry.blob_lab import DATA, DIGEST, key
from weft_registry.blobs.bucket import Bucket, Patience
from weft_registry.blobs.object import ObjectBlobStore
from weft_registry.errors import PreconditionError, UnavailableError

pytestmark = pytest.mark.skipif(
    not (BUCKET or "").startswith(SCHEME), reason="Azurite is not running: see `make test-azure`"
)
PATIENCE = Patience(failing_s=2.0)


def store(place: str, directory: Path) -> ObjectBlobStore:
    return ObjectBlobStore(Bucket.at(place, PATIENCE), directory / "staging")


def test_a_blob_is_an_object_in_the_container(place: str, tmp_path: Path) -> None:
    held, path = store(place, tmp_path), tmp_path / "file"
    path.write_bytes(DATA)
    held.put_file(path, DIGEST, len(DATA))
    assert bytes(obstore.get(Bucket.at(place).store, key(DIGEST)).bytes()) == DATA
    assert b"".join(held.read(DIGEST)) == DATA


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc="),
        ("AZURE_STORAGE_ACCOUNT_KEY", "no base64"),
        ("AZURE_STORAGE_ACCOUNT_KEY", None),
        ("AZURE_STORAGE_ACCOUNT_NAME", "nobody"),
        ("AZURE_STORAGE_ACCOUNT_NAME", None),
    ],
)
def test_credentials_that_cannot_be_used_are_told_at_once(
    variable: str, value: str | None, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    start = time.monotonic()
    with pytest.raises(PreconditionError, match="set AZURE_STORAGE_ACCOUNT_NAME, and") as caught:
        store(place, tmp_path).missing([DIGEST])
    assert caught.value.reason == "BLOBS_CREDENTIALS"
    assert time.monotonic() - start < 20.0


def test_a_container_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    held = store(f"{SCHEME}no-such-container/prefix", tmp_path)
    for attempt in (lambda: held.missing([DIGEST]), lambda: held.size(DIGEST), held.check_access):
        with pytest.raises(PreconditionError, match="no such bucket") as caught:
            attempt()
        assert caught.value.reason == "BLOBS_NO_BUCKET"


def test_a_server_that_is_gone_is_waited_for_within_a_bound(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:1/weft")
    with pytest.raises(UnavailableError, match="try again"):
        store(place, tmp_path).missing([DIGEST])
