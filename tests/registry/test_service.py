"""The registry over a real gRPC channel: uploads that break and go on, pages, and damage that is never served."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.registry.blob_lab import lab_of
from tests.registry.lab import python, serving, upload_all
from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry import artifact, transfer
from weft_registry import digest as digests
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    ConflictError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    OffsetError,
    PreconditionError,
    UnavailableError,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.serve import paging
from weft_registry.wire.messages import MAX_CHUNK_BYTES
from weft_registry.wire.status import from_rpc_error

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "support")
DATA = os.urandom(5 * (1 << 20) + 3)
DIGEST = digests.of_bytes(DATA)


@pytest.fixture
def target(registry: EmbeddedRegistry) -> Iterator[str]:
    with serving(registry) as target:
        yield target


@pytest.fixture
def remote(target: str) -> Iterator[RemoteRegistry]:
    remote = RemoteRegistry(target)
    yield remote
    remote.close()


@pytest.fixture
def stub(target: str) -> Iterator[Any]:
    with grpc.insecure_channel(target) as channel:
        yield registry_pb2_grpc.RegistryServiceStub(channel)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def error_of(call: Callable[[], Any]) -> WeftError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def test_remote_and_embedded_answer_the_same(
    registry: EmbeddedRegistry, remote: RemoteRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    published = transfer.push(remote, new_artifact(seed=1), NAME, tags=["v1"], aliases=["production"])
    assert not published.existing
    assert published.version == registry.resolve("team/support")
    transfer.push(remote, new_artifact(seed=2), NAME, tags=["v2"])
    for reference in ("team/support", "team/support:v1", f"team/support@{published.version.digest}"):
        assert remote.resolve(reference) == registry.resolve(reference)
    assert remote.list_adapters() == registry.list_adapters()
    assert remote.list_versions(NAME) == registry.list_versions(NAME)
    assert remote.verify("team/support:v1") == registry.verify("team/support:v1")
    alias = remote.set_alias(NAME, "production", "v2")
    assert alias == registry.set_alias(NAME, "production", "v2", alias.etag)
    with pytest.raises(ConflictError) as caught:
        remote.set_alias(NAME, "production", "v1", "stale")
    assert caught.value.metadata["etag"] == alias.etag
    with pytest.raises(PreconditionError, match="production"):
        remote.yank("team/support:v2")
    assert remote.yank("team/support:v1", "old").yank_reason == "old"
    assert remote.list_versions(NAME, include_yanked=True) == registry.list_versions(NAME, include_yanked=True)
    with pytest.raises(NotFoundError) as missing:
        remote.resolve("team/suport")
    assert missing.value.metadata["nearest"] == "team/support"
    transfer.pull(remote, "team/support", tmp_path / "out")
    assert artifact.read(tmp_path / "out").digest() == remote.resolve("team/support").digest


def test_violations_travel(remote: RemoteRegistry, new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    data = upload_all(remote, directory).replace(b'"text/markdown"', b'"text/html"')
    with pytest.raises(InvalidInputError) as caught:
        remote.publish(NAME, data)
    assert [violation.field for violation in caught.value.violations] == ["files[README.md].media_type"]


def test_an_upload_that_was_broken_off_goes_on_where_it_was(
    registry: EmbeddedRegistry, remote: RemoteRegistry, stub: Any, source: Path
) -> None:
    start = stub.StartUpload(pb.StartUploadRequest(digest=DIGEST, size_bytes=len(DATA)))
    enough = threading.Event()

    def requests() -> Iterator[pb.WriteUploadRequest]:
        for offset in (0, MAX_CHUNK_BYTES):
            chunk = DATA[offset : offset + MAX_CHUNK_BYTES]
            yield pb.WriteUploadRequest(upload_id=start.upload_id, offset_bytes=offset, chunk=chunk)
        enough.wait(30)

    call = stub.WriteUpload.future(requests())
    query = pb.QueryUploadRequest(upload_id=start.upload_id)
    while stub.QueryUpload(query).committed_size_bytes < 2 * MAX_CHUNK_BYTES:
        pass
    call.cancel()
    enough.set()
    steps: list[int] = []
    remote.upload(source, DIGEST, len(DATA), steps.append)
    # The first step is what was there already; the rest is only what was missing.
    assert steps[0] == 2 * MAX_CHUNK_BYTES
    assert sum(steps) == len(DATA)
    assert registry.blobs.verify(DIGEST) == len(DATA)
    steps.clear()
    remote.upload(source, DIGEST, len(DATA), steps.append)
    assert steps == [len(DATA)]


SERVER = """
import asyncio, sys
import grpc
from weft.v1 import registry_pb2_grpc
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.service import RegistryServicer
from weft_registry.wire.status import ErrorInterceptor

async def main():
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    servicer = RegistryServicer(EmbeddedRegistry(Home.from_environment()))
    add_registry_service(servicer, server)
    port = server.add_insecure_port(sys.argv[1])
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


def test_an_upload_outlives_a_kill_of_the_server(home: Home, source: Path) -> None:
    first = python(SERVER, "127.0.0.1:0", home=home)
    assert first.stdout is not None
    port = int(first.stdout.readline())
    remote = RemoteRegistry(f"127.0.0.1:{port}")
    steps: list[int] = []
    second: list[subprocess.Popen[str]] = []
    settled = threading.Event()
    settled.set()

    def progress(done: int) -> None:
        steps.append(done)
        if sum(steps) >= 3 * MAX_CHUNK_BYTES and not second:
            # In the middle of the client's stream: the server dies, and another takes its port.
            settled.clear()
            first.send_signal(signal.SIGKILL)
            first.wait(20)
            second.append(python(SERVER, f"127.0.0.1:{port}", home=home))
            assert second[0].stdout is not None
            assert int(second[0].stdout.readline()) == port
            settled.set()

    try:
        remote.upload(source, DIGEST, len(DATA), progress)
        assert sum(steps) == len(DATA)
        assert remote.find_missing([DIGEST]) == []
        assert b"".join(remote.read_blob(DIGEST)) == DATA
    finally:
        remote.close()
        settled.wait(20)  # The restart happens on gRPC's own thread: no server may be left behind.
        for process in (first, *second):
            process.kill()
            process.communicate(timeout=20)


def test_two_senders_of_one_blob_both_succeed(registry: EmbeddedRegistry, target: str, source: Path) -> None:
    failures: list[WeftError] = []

    def send() -> None:
        remote = RemoteRegistry(target)
        try:
            remote.upload(source, DIGEST, len(DATA))
        except WeftError as error:
            failures.append(error)
        remote.close()

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert registry.blobs.verify(DIGEST) == len(DATA)


def test_bytes_with_another_digest_are_data_loss_and_store_nothing(
    registry: EmbeddedRegistry, remote: RemoteRegistry, source: Path
) -> None:
    other = digests.of_bytes(b"other")
    with pytest.raises(CorruptionError, match="nothing was stored"):
        remote.upload(source, other, len(DATA))
    assert registry.find_missing([other, DIGEST]) == [other, DIGEST]


def test_a_file_shorter_than_promised_is_refused(remote: RemoteRegistry, source: Path) -> None:
    with pytest.raises(OffsetError, match="send the rest"):
        remote.upload(source, DIGEST, len(DATA) + 1)


def test_malformed_writes_are_refused(stub: Any) -> None:
    upload_id = stub.StartUpload(pb.StartUploadRequest(digest=DIGEST, size_bytes=len(DATA))).upload_id

    def write(*requests: pb.WriteUploadRequest) -> WeftError:
        return error_of(lambda: stub.WriteUpload(iter(requests)))

    request = pb.WriteUploadRequest
    assert isinstance(write(), InvalidInputError)
    assert isinstance(write(request(chunk=b"x")), InvalidInputError)
    assert isinstance(write(request(upload_id="x", chunk=b"x")), NotFoundError)
    assert isinstance(write(request(upload_id=upload_id, chunk=DATA[: MAX_CHUNK_BYTES + 1])), InvalidInputError)
    gap = write(request(upload_id=upload_id, offset_bytes=7, chunk=b"x"))
    assert isinstance(gap, OffsetError)
    assert gap.metadata["committed_bytes"] == "0"
    assert isinstance(write(request(upload_id=upload_id, finish=True)), OffsetError)
    other = request(upload_id="0" * 64 + "-1", chunk=b"y", offset_bytes=1)
    assert isinstance(write(request(upload_id=upload_id, chunk=b"x"), other), InvalidInputError)
    assert stub.QueryUpload(pb.QueryUploadRequest(upload_id=upload_id)).committed_size_bytes == 1


def test_malformed_questions_are_refused(stub: Any, registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    transfer.push(registry, new_artifact(), NAME)
    cases = [
        lambda: stub.FindMissingBlobs(pb.FindMissingBlobsRequest(digests=["x"])),
        lambda: stub.FindMissingBlobs(pb.FindMissingBlobsRequest(digests=[DIGEST] * 1001)),
        lambda: stub.StartUpload(pb.StartUploadRequest(digest=DIGEST, size_bytes=-1)),
        lambda: stub.ListAdapters(pb.ListAdaptersRequest(page_size=-1)),
        lambda: stub.ListAdapters(pb.ListAdaptersRequest(page_size=1001)),
        lambda: stub.ListAdapters(pb.ListAdaptersRequest(page_token="nonsense")),
        lambda: stub.ListAdapters(pb.ListAdaptersRequest(namespace="../x")),
        lambda: stub.ListVersions(pb.ListVersionsRequest(adapter="team/support", page_token="-1")),
        lambda: stub.ListVersions(pb.ListVersionsRequest(adapter="team")),
        lambda: stub.Resolve(pb.ResolveRequest(reference="")),
        lambda: stub.Publish(pb.PublishRequest(adapter="team/support", manifest_json=b"\xff")),
        lambda: stub.Yank(pb.YankRequest(reference="team/support", reason="x" * 1001)),
        lambda: list(stub.ReadBlob(pb.ReadBlobRequest(digest="sha256:../../etc/passwd"))),
    ]
    for call in cases:
        assert isinstance(error_of(call), InvalidInputError)
    assert isinstance(error_of(lambda: stub.ListVersions(pb.ListVersionsRequest(adapter="a/b"))), NotFoundError)


def test_pages_cover_everything_once(
    registry: EmbeddedRegistry, stub: Any, new_artifact: NewArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [AdapterName("team", f"a{index}") for index in range(5)]
    for index, name in enumerate(names):
        transfer.push(registry, new_artifact(seed=index), name)
        transfer.push(registry, new_artifact(seed=index), NAME)
    for page_bytes in (1 << 20, 1):  # By count, and with pages cut short by their size.
        monkeypatch.setattr(paging, "PAGE_BYTES", page_bytes)
        adapters, versions = [], []
        request = pb.ListAdaptersRequest(namespace="team", page_size=2)
        while True:
            answer = stub.ListAdapters(request)
            assert len(answer.adapters) <= 2
            adapters += [summary.name for summary in answer.adapters]
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        assert adapters == sorted([*(name.name for name in names), NAME.name])
        ask = pb.ListVersionsRequest(adapter="team/support", page_size=3)
        while True:
            page = stub.ListVersions(ask)
            versions += [version.digest for version in page.versions]
            ask.page_token = page.next_page_token
            if not ask.page_token:
                break
        assert versions == [version.digest for version in registry.list_versions(NAME)]


def damage(home: Home, digest: str) -> None:
    lab = lab_of(home)
    data = bytearray(lab.held()[digest])
    data[len(data) // 2] ^= 1
    lab.replace(digest, bytes(data))


def test_a_corrupt_blob_is_data_loss_and_never_served(
    home: Home, registry: EmbeddedRegistry, remote: RemoteRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    version = transfer.push(remote, directory, NAME).version
    digest = next(file.sha256 for file in version.manifest.files if file.path == artifact.WEIGHTS)
    damage(home, digest)
    for source in (remote, registry):
        with pytest.raises(CorruptionError, match=f"{digest} is corrupt.*restore it") as refused:
            transfer.pull(source, "team/support", tmp_path / "out")
        assert refused.value.reason == "BLOB_CORRUPT"
        assert not (tmp_path / "out").exists()
        for offset, limit in ((0, 0), (0, 10)):
            with pytest.raises(CorruptionError):
                list(source.read_blob(digest, offset, limit))
        # Whoever hashes them is given them.
        assert digests.of_bytes(b"".join(source.read_blob(digest, unverified=True))) != digest
    report = remote.verify("team/support")
    assert len(report.problems) == 1
    assert digest in report.problems[0]
    # It does not become part of another version either.
    with pytest.raises(CorruptionError):
        transfer.push(remote, directory, AdapterName("team", "other"))
    assert [str(summary.adapter) for summary in registry.list_adapters()] == ["team/support"]


def test_reading_a_part_is_that_part(remote: RemoteRegistry, source: Path) -> None:
    remote.upload(source, DIGEST, len(DATA))
    assert b"".join(remote.read_blob(DIGEST, 10, 2_000_000)) == DATA[10:2_000_010]
    assert b"".join(remote.read_blob(DIGEST, len(DATA) - 4)) == DATA[-4:]
    with pytest.raises(OffsetError):
        list(remote.read_blob(DIGEST, len(DATA) + 1))


def test_a_read_that_broke_off_goes_on_with_the_next_byte(
    registry: EmbeddedRegistry, remote: RemoteRegistry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.upload(source, DIGEST, len(DATA))
    asked: list[tuple[int, int]] = []

    def breaking(digest: str, offset: int = 0, limit: int = 0, *, unverified: bool) -> Iterator[bytes]:
        asked.append((offset, limit))
        for index, chunk in enumerate(registry.blobs.read(digest, offset, limit)):
            if index == 2 and len(asked) < 3:
                raise UnavailableError("the connection broke")
            yield chunk

    monkeypatch.setattr(registry, "read_blob", breaking)
    assert b"".join(remote.read_blob(DIGEST)) == DATA
    assert asked == [(0, 0), (2 * MAX_CHUNK_BYTES, 0), (4 * MAX_CHUNK_BYTES, 0)]
    asked.clear()
    assert b"".join(remote.read_blob(DIGEST, 5, 3 * MAX_CHUNK_BYTES)) == DATA[5 : 5 + 3 * MAX_CHUNK_BYTES]
    assert asked == [(5, 3 * MAX_CHUNK_BYTES), (5 + 2 * MAX_CHUNK_BYTES, MAX_CHUNK_BYTES)]


def test_nobody_there_is_unavailable_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft_registry.remote.registry.MAX_DELAY_S", 0.01)
    remote = RemoteRegistry("127.0.0.1:1")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 .*--registry") as caught:
        remote.resolve("team/support")
    assert caught.value.reason == "REGISTRY_UNREACHABLE"
    remote.close()
