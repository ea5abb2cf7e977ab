"""Adapters from a Hugging Face Hub: the hub here is our own face of another registry, and small servers that lie."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from tests.registry.lab import add_base, make_artifact
from weft_registry import artifact, transfer
from weft_registry.base import BaseStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from weft_registry.exchange.adoption import Choice, adopt
from weft_registry.exchange.hub_import import Hub, HubSource
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are told to be offline; these talk to a server of their own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


class FakeHub:
    """As much of a hub as an import asks for: one repository of plain files at one commit."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.sizes: dict[str, int] = {}
        """What the listing says instead of the truth."""
        self.status = 200
        self.error = ""
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.endpoint = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.status != 200:
            return self.status, {"X-Error-Code": self.error, "X-Error-Message": "no"}, b"{}"
        if "/commits/" in path:
            return _json(
                [{"id": COMMIT, "title": "t", "message": "", "date": "2025-03-04T05:06:07.000Z", "authors": []}]
            )
        if "/tree/" in path:
            return _json([{"type": "file", "path": name, **self._entry(name)} for name in self.files])
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name, **self._entry(name)} for name in self.files]
            return _json({"id": "org/repo", "sha": COMMIT, "tags": [], "private": False, "siblings": siblings})
        name = unquote(path).rpartition("/")[2]
        data = self.files[name]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data))}, data

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        oid = hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
        return {"size": self.sizes.get(name, len(data)), "blobId": oid, "oid": oid}


def _json(document: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


@contextmanager
def fake_hub(files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(path)
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def peft_files(tmp_path: Path) -> dict[str, bytes]:
    """A plain PEFT adapter, as its author uploads it: a card with a licence, and what only training used."""
    directory = make_artifact(tmp_path / "plain", readme="---\nlicense: mit\nbase_model: tiny/base\n---\n# A card\n")
    (directory / artifact.MANIFEST).unlink()
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {**files, "training_args.bin": b"pickle", "run.py": b"import os", ".gitattributes": b"*"}


def bring(hub: Hub, source: str, home: Home, scratch: Path, choice: Choice | None = None) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    snapshot = hub.snapshot(HubSource.parse(source))
    files = hub.download(snapshot, scratch)
    bases = BaseStore(home.bases)
    return adopt(files, scratch / "artifact", "topics", hub.origin(snapshot), bases, choice or Choice())


def test_what_weft_published_stays_the_version_that_it_is(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path, home: Home
) -> None:
    """Registry to registry, over the Hub face, by tag, alias, commit and default branch."""
    versions = [
        transfer.push(registry, new_artifact(seed=n), NAME, tags=[f"v{n}"], aliases=["live"]).version for n in range(2)
    ]
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    try:
        hub = Hub(f"http://{port.address}")
        wanted = {
            "hf:acme/topics@v0": 0,
            "hf:acme/topics@live": 1,
            "hf:acme/topics": 1,
            f"hf:acme/topics@{versions[0].digest[7:47]}": 0,
        }
        for number, (source, which) in enumerate(wanted.items()):
            directory = bring(hub, source, home, tmp_path / str(number))
            assert artifact.read(directory).digest() == versions[which].digest, source
        assert hub.tags(HubSource("acme/topics")) == {f"v{n}": versions[n].digest[7:47] for n in range(2)}
        other = EmbeddedRegistry(Home(tmp_path / "other"))
        try:
            published = transfer.push(other, directory, AdapterName("mirror", "topics"))
        finally:
            other.close()
        assert published.version.digest == versions[0].digest
    finally:
        port.close()


def test_a_plain_peft_adapter_becomes_a_version_that_says_where_it_comes_from(
    peft_files: dict[str, bytes], tmp_path: Path, home: Home
) -> None:
    add_base(home)
    with fake_hub(peft_files) as fake:
        hub = Hub(fake.endpoint, token="hf_secret")
        first = bring(hub, "hf:org/repo@main", home, tmp_path / "one")
        again = bring(hub, f"hf:org/repo@{COMMIT}", home, tmp_path / "two", Choice(base="tiny"))
    manifest = artifact.read(first)
    assert manifest.provenance == {"source": "hf:org/repo", "commit": COMMIT, "endpoint": fake.endpoint}
    assert (manifest.created, manifest.license, manifest.name) == ("2025-03-04T05:06:07Z", "mit", "topics")
    assert {file.path for file in manifest.files} == {artifact.CONFIG, artifact.WEIGHTS, artifact.CARD}
    assert manifest.digest() == artifact.read(again).digest(), "the same commit is the same version, whenever it comes"
    assert fake.tokens == {"Bearer hf_secret"}
    fetched = {path.rpartition("/")[2] for path in fake.asked if "/resolve/" in path}
    assert fetched == {artifact.CONFIG, artifact.WEIGHTS, artifact.CARD}, "no code and no pickle is even asked for"
    assert all(COMMIT in path for path in fake.asked if "/resolve/" in path), "asked by commit"


def test_a_base_that_is_not_stored_is_asked_for(peft_files: dict[str, bytes], tmp_path: Path, home: Home) -> None:
    with fake_hub(peft_files) as fake:
        hub = Hub(fake.endpoint)
        with pytest.raises(NotFoundError, match=r"'tiny/base'.*--base NAME.*weft base add") as caught:
            bring(hub, "hf:org/repo", home, tmp_path / "one")
        assert caught.value.reason == "BASE_NOT_FOUND"
        add_base(home)
        shutil.copytree(home.bases / "tiny", home.bases / "twin")
        with pytest.raises(NotFoundError, match="tiny, twin are all of it"):
            bring(hub, "hf:org/repo", home, tmp_path / "two")


def test_a_repository_without_an_adapter_is_listed(peft_files: dict[str, bytes], tmp_path: Path, home: Home) -> None:
    weights = peft_files.pop(artifact.WEIGHTS)
    with fake_hub(peft_files) as fake, pytest.raises(NotFoundError, match=r"There is: .*run\.py") as caught:
        bring(Hub(fake.endpoint), "hf:org/repo", home, tmp_path / "one")
    assert caught.value.reason == "NO_ADAPTER"
    with (
        fake_hub({**peft_files, "adapter_model.bin": weights}) as fake,
        pytest.raises(UnsupportedError, match="pickle"),
    ):
        bring(Hub(fake.endpoint), "hf:org/repo", home, tmp_path / "two")
    assert not any("/resolve/" in path for path in fake.asked)


def test_sizes_are_bounded_before_anything_is_fetched(peft_files: dict[str, bytes], tmp_path: Path, home: Home) -> None:
    with fake_hub(peft_files) as fake:
        hub = Hub(fake.endpoint)
        snapshot = hub.snapshot(HubSource("org/repo"))
        with pytest.raises(ExhaustedError, match="at most 1000"):
            hub.download(snapshot, tmp_path, max_bytes=1000)
        fake.sizes[artifact.CONFIG] = artifact.MAX_CONFIG_BYTES + 1
        with pytest.raises(ExhaustedError, match="adapter_config"):
            hub.download(hub.snapshot(HubSource("org/repo")), tmp_path)
    assert not any("/resolve/" in path for path in fake.asked)


def test_bytes_that_the_listing_does_not_promise_are_refused(
    peft_files: dict[str, bytes], tmp_path: Path, home: Home
) -> None:
    """The client checks sizes alone: the same number of other bytes would pass it."""
    with fake_hub(peft_files) as fake:
        hub = Hub(fake.endpoint)
        snapshot = hub.snapshot(HubSource("org/repo"))
        good = fake.files[artifact.WEIGHTS]
        fake.files[artifact.WEIGHTS] = good[:-1] + bytes([good[-1] ^ 1])
        with pytest.raises(CorruptionError, match="are not those of commit"):
            hub.download(snapshot, tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (404, "RepoNotFound", NotFoundError, "no repository .* or it is private"),
        (401, "RepoNotFound", NotFoundError, "set HF_TOKEN"),
        (403, "GatedRepo", ForbiddenError, "is gated"),
        (404, "RevisionNotFound", NotFoundError, "no revision 'v9'"),
        (418, "", UnavailableError, "could not be read"),
    ],
)
def test_a_hub_that_says_no_is_quoted(status: int, code: str, error: type[Exception], words: str) -> None:
    with fake_hub({}) as fake:
        fake.status, fake.error = status, code
        with pytest.raises(error, match=words):
            Hub(fake.endpoint).snapshot(HubSource("org/repo", "v9"))


def test_a_hub_that_is_not_there_is_named() -> None:
    with fake_hub({}) as fake:
        endpoint = fake.endpoint
    with pytest.raises(UnavailableError, match=endpoint):
        Hub(endpoint).snapshot(HubSource("org/repo"))


def test_a_manifest_that_lists_what_is_not_there_is_refused(
    new_artifact: NewArtifact, tmp_path: Path, home: Home
) -> None:
    files = {path.name: path.read_bytes() for path in new_artifact().iterdir()}
    del files[artifact.CARD]
    with fake_hub(files) as fake, pytest.raises(InvalidInputError, match=r"README\.md"):
        bring(Hub(fake.endpoint), "hf:org/repo", home, tmp_path / "one")


@pytest.mark.parametrize("text", ["hf:", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@\n", "hf:a b", "hf:/b"])
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expected hf:ORG/REPO"):
        HubSource.parse(text)
