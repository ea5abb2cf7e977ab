"""Where a registry keeps things: URLs, the environment, what is not installed; and a bucket's answers in our words."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from weft_registry import digest as digests
from weft_registry.blobs.bucket import Bucket, Patience
from weft_registry.blobs.local import LocalBlobStore
from weft_registry.blobs.object import ObjectBlobStore
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, PreconditionError, UnavailableError, UnsupportedError, WeftError
from weft_registry.home import Home
from weft_registry.storage import BLOBS_VARIABLE, DATABASE_VARIABLE, Storage

DIGEST = digests.of_bytes(b"x")


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (DATABASE_VARIABLE, BLOBS_VARIABLE, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")


def test_without_a_word_all_is_in_the_home(tmp_path: Path) -> None:
    registry = EmbeddedRegistry(Home(tmp_path))
    assert registry.where == (str(tmp_path / "registry" / "catalog.db"), str(tmp_path / "registry"))
    registry.close()


def test_the_environment_says_where_every_embedded_registry_keeps_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, f"sqlite:///{tmp_path}/elsewhere/catalog.db")
    monkeypatch.setenv(BLOBS_VARIABLE, f"file://{tmp_path}/its%20blobs")
    registry = EmbeddedRegistry(Home(tmp_path / "home"))
    assert registry.where == (str(tmp_path / "elsewhere" / "catalog.db"), str(tmp_path / "its blobs"))
    registry.close()
    assert not (tmp_path / "home").exists()
    said = Storage.from_environment("sqlite:////given.db", None)
    assert said == Storage("sqlite:////given.db", f"file://{tmp_path}/its%20blobs")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://bucket/a?b",
        "s3://key:not-a-secret@bucket/prefix",
        "http://bucket/prefix",
        "memory:///",
        "relative/path",
        "file://host/path",
        "file:relative",
        "file:///path#part",
    ],
)
def test_what_is_no_place_for_blobs_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="file:///DIRECTORY") as caught:
        Storage(None, url).open_blobs(tmp_path, None)
    assert "not-a-secret" not in caught.value.message


@pytest.mark.parametrize(
    "url", [" ", "postgresql", "postgresql//weft:not-a-secret@db/weft", "sqlite://", "sqlite:///:memory:"]
)
def test_what_is_no_place_for_a_catalog_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="database: ") as caught:
        Storage(url, None).open_catalog(Path("/nowhere"))
    assert "not-a-secret" not in caught.value.message + repr(Storage(url, None))


def test_another_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"mysql.*SQLite or PostgreSQL"):
        Storage("mysql://host/name", None).open_catalog(tmp_path)


@pytest.mark.parametrize(
    ("module", "gone", "storage"),
    [
        ("psycopg", "weft_registry.catalog.postgres", Storage("postgresql://weft@127.0.0.1/weft", None)),
        ("obstore", "weft_registry.blobs.bucket", Storage(None, "s3://bucket/prefix")),
    ],
)
def test_what_is_not_installed_is_named_with_the_way_out(
    module: str, gone: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in (gone, "weft_registry.blobs.object", "weft_registry.blobs.reader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UnsupportedError, match=r"pip install 'weft\[registry\]'") as caught:
        EmbeddedRegistry(Home(tmp_path), None, storage)
    assert caught.value.reason == "NOT_INSTALLED"


def test_files_need_neither_library(tmp_path: Path) -> None:
    """Nor does anybody wait for them to be imported."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom weft_registry.storage import Storage\n"
        "s = Storage(); s.open_catalog(Path(sys.argv[1])).close(); s.open_blobs(Path(sys.argv[1]), None)\n"
        "assert not {'obstore', 'psycopg'} & set(sys.modules)\n"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{script}", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Answers(ThreadingHTTPServer):
    """An HTTP server that says what a test wants it to, and counts."""

    def __init__(self) -> None:
        self.status, self.body, self.count, self.failures = 200, b"", 0, -1
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        """The same for every method."""
        self.server.count += 1
        failing = self.server.failures != 0
        self.server.failures -= failing
        body = self.server.body if failing else b"<ListBucketResult></ListBucketResult>"
        self.send_response(self.server.status if failing else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    server = Answers()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "reason", "kind"),
    [
        (403, "InvalidAccessKeyId", "BLOBS_CREDENTIALS", PreconditionError),
        (401, "Unauthorized", "BLOBS_CREDENTIALS", PreconditionError),
        (404, "NoSuchBucket", "BLOBS_NO_BUCKET", PreconditionError),
        (400, "InvalidRequest", "BLOBS_REFUSED", PreconditionError),
        (500, "InternalError", "BLOBS_UNREACHABLE", UnavailableError),
        (503, "SlowDown", "BLOBS_UNREACHABLE", UnavailableError),
    ],
)
def test_an_answer_is_told_in_our_words_and_only_what_may_pass_is_waited_for(
    answers: Answers, status: int, code: str, reason: str, kind: type[WeftError], tmp_path: Path
) -> None:
    answers.status = status
    answers.body = f"<Error><Code>{code}</Code><Message>Because of it.</Message></Error>".encode()
    store = ObjectBlobStore(Bucket.at("s3://bucket/prefix", Patience(failing_s=1.0)), tmp_path)
    start = time.monotonic()
    with pytest.raises(kind, match=code) as caught:
        store.missing([DIGEST])
    assert caught.value.reason == reason
    assert "s3://bucket/prefix" in caught.value.message
    assert "Because of it." in caught.value.message
    assert "not-a-secret" not in caught.value.message
    assert "Debug" not in caught.value.message
    assert time.monotonic() - start < 10.0
    assert (answers.count == 1) == (kind is PreconditionError)


def test_a_failure_that_passes_is_not_even_told(answers: Answers, tmp_path: Path) -> None:
    answers.status, answers.failures = 503, 6  # More than the library itself tries again.
    ObjectBlobStore(Bucket.at("s3://bucket/prefix", Patience(failing_s=20.0)), tmp_path).check_access()
    assert answers.count == 7


def test_plain_http_is_for_endpoints_that_say_so(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint over http:// was asked for by name; no other connection is ever made in the clear."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", answers.url.replace("http://", "https://"))
    with pytest.raises(UnavailableError):
        Bucket.at("s3://bucket/prefix", Patience(failing_s=0.1)).reach()
    assert answers.count == 0


def test_a_directory_by_url_is_the_directory(tmp_path: Path) -> None:
    store = Storage(None, f"file://{tmp_path}/blobs").open_blobs(tmp_path / "unused", None)
    assert isinstance(store, LocalBlobStore)
    assert store.where == f"{tmp_path}/blobs"
    assert not (tmp_path / "unused").exists()
