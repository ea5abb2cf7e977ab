"""Abuse of the gRPC service: every call is answered with its status, and the server is afterwards as it was before."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.registry.hostile.conftest import Tenants
from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry.access.blob_access import owner_of
from weft_registry.wire.status import from_rpc_error

ADAPTER = "mine/secret"
ZERO = "sha256:" + "0" * 64
MIB = 1 << 20
Code = grpc.StatusCode
Call = Callable[["Caller"], Any]


class Caller:
    """Calls with a token, on a channel of its own."""

    def __init__(self, address: str, token: str | None) -> None:
        options = [("grpc.max_send_message_length", 64 * MIB), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(address, options=[*options, ("grpc.use_local_subchannel_pool", 1)])
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, more: list[tuple[str, str]] | None = None, timeout_s: float = 30) -> Any:
        """One call; a stream is read to its end."""
        metadata = [*self._metadata, *(more or [])]
        answer = getattr(self._stub, method)(request, metadata=metadata, timeout=timeout_s)
        return list(answer) if method in ("ReadBlob", "WatchAliases") else answer

    def begin(self, method: str, request: Any) -> Any:
        """A call that is not waited for."""
        return getattr(self._stub, method)(request, metadata=self._metadata, timeout=60)

    def future(self, method: str, request: Any) -> Any:
        """The same, of a call with one answer."""
        return getattr(self._stub, method).future(request, metadata=self._metadata, timeout=60)

    def start(self, data: bytes, size: int | None = None) -> str:
        """Begins an upload, and returns its id."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        size = len(data) if size is None else size
        return str(
            self.call("StartUpload", pb.StartUploadRequest(digest=digest, size_bytes=size, adapter=ADAPTER)).upload_id
        )

    def write(self, upload: str, *pieces: tuple[int, bytes], finish: bool = False) -> Any:
        """Sends chunks at offsets."""
        requests = [pb.WriteUploadRequest(upload_id=upload, offset_bytes=at, chunk=chunk) for at, chunk in pieces]
        if finish:
            end = sum(len(chunk) for _, chunk in pieces)
            requests.append(pb.WriteUploadRequest(upload_id=upload, offset_bytes=end, finish=True))
        return self.call("WriteUpload", iter(requests))


@pytest.fixture
def caller(tenants: Tenants) -> Iterator[Caller]:
    with Caller(tenants.server.address, tenants.mine) as found:
        yield found


def start(digest: str, size: int, adapter: str = ADAPTER) -> Call:
    return lambda c: c.call("StartUpload", pb.StartUploadRequest(digest=digest, size_bytes=size, adapter=adapter))


def read(offset: int, limit: int = 0, digest: str = "") -> Call:
    return lambda c: c.call("ReadBlob", pb.ReadBlobRequest(digest=digest, offset_bytes=offset, limit_bytes=limit))


def publish(**fields: Any) -> Call:
    return lambda c: c.call("Publish", pb.PublishRequest(**{"adapter": ADAPTER, "manifest_json": b"{}", **fields}))


REFUSED: dict[str, tuple[Call, set[Code]]] = {
    "a write without a begin": (lambda c: c.write("0" * 64 + "-10", (0, b"x")), {Code.NOT_FOUND}),
    "a write to what is no upload": (lambda c: c.write("../../catalog.db", (0, b"x")), {Code.NOT_FOUND}),
    "a write to an upload of nobody's": (lambda c: c.write("0" * 64 + "-x-" + "0" * 12, (0, b"x")), {Code.NOT_FOUND}),
    "a write of nothing at all": (lambda c: c.call("WriteUpload", iter([])), {Code.INVALID_ARGUMENT}),
    "a write without an upload": (lambda c: c.write("", (0, b"x")), {Code.INVALID_ARGUMENT}),
    "two uploads in one call": (
        lambda c: c.call(
            "WriteUpload",
            iter(
                [
                    pb.WriteUploadRequest(upload_id=c.start(b"one of two"), chunk=b"o"),
                    pb.WriteUploadRequest(upload_id=c.start(b"two of two"), chunk=b"t"),
                ]
            ),
        ),
        {Code.INVALID_ARGUMENT},
    ),
    "a chunk too large": (lambda c: c.write(c.start(b"x" * (2 * MIB)), (0, b"x" * (MIB + 1))), {Code.INVALID_ARGUMENT}),
    "a message too large": (
        lambda c: c.write(c.start(b"x" * (2 * MIB)), (0, b"x" * (20 * MIB))),
        {Code.RESOURCE_EXHAUSTED},
    ),
    "a hole between chunks": (lambda c: c.write(c.start(b"abc"), (1, b"b")), {Code.OUT_OF_RANGE}),
    "a chunk twice": (lambda c: c.write(c.start(b"twice twice"), (0, b"twice "), (0, b"twice ")), {Code.OUT_OF_RANGE}),
    "a negative offset": (lambda c: c.write(c.start(b"negative"), (-1, b"n")), {Code.OUT_OF_RANGE}),
    "an offset at the end of numbers": (lambda c: c.write(c.start(b"far"), ((1 << 63) - 1, b"f")), {Code.OUT_OF_RANGE}),
    "more bytes than were promised": (lambda c: c.write(c.start(b"short", 5), (0, b"longer")), {Code.OUT_OF_RANGE}),
    "an end before its time": (
        lambda c: c.call("WriteUpload", iter([pb.WriteUploadRequest(upload_id=c.start(b"early"), finish=True)])),
        {Code.OUT_OF_RANGE},
    ),
    "other bytes than were promised": (
        lambda c: c.write(c.start(b"right"), (0, b"wrong"), finish=True),
        {Code.DATA_LOSS},
    ),
    "a negative size": (start(ZERO, -1), {Code.INVALID_ARGUMENT}),
    "a size at the end of numbers": (start(ZERO, (1 << 63) - 1), {Code.RESOURCE_EXHAUSTED}),
    "an upload of what is no digest": (start("sha256:../../../etc/passwd", 1), {Code.INVALID_ARGUMENT}),
    "an upload for what is no adapter": (start(ZERO, 1, "../secret"), {Code.INVALID_ARGUMENT}),
    "an upload for nobody": (start(ZERO, 1, ""), {Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT, Code.OK}),
    "an upload for another tenant": (start(ZERO, 1, "theirs/secret"), {Code.PERMISSION_DENIED}),
    "a thousand and one digests": (
        lambda c: c.call("FindMissingBlobs", pb.FindMissingBlobsRequest(digests=[ZERO] * 1001, adapter=ADAPTER)),
        {Code.INVALID_ARGUMENT},
    ),
    "digests that are none": (
        lambda c: c.call("FindMissingBlobs", pb.FindMissingBlobsRequest(digests=["x", ""], adapter=ADAPTER)),
        {Code.INVALID_ARGUMENT},
    ),
    "an upload that is none, asked about": (
        lambda c: c.call("QueryUpload", pb.QueryUploadRequest(upload_id="0" * 64)),
        {Code.NOT_FOUND},
    ),
    "a blob that is no digest": (read(0, digest="..%2f..%2fcatalog.db"), {Code.INVALID_ARGUMENT}),
    "a manifest of nothing": (publish(manifest_json=b""), {Code.INVALID_ARGUMENT}),
    "a manifest of brackets": (publish(manifest_json=b"[" * (8 * MIB)), {Code.INVALID_ARGUMENT}),
    "a request id that is none": (publish(request_id="x" * 1000), {Code.INVALID_ARGUMENT}),
    "ten thousand tags": (publish(tags=[f"t{i}" for i in range(10_000)]), {Code.INVALID_ARGUMENT}),
    "a tag and an alias in one": (publish(tags=["a"], aliases=["a"]), {Code.INVALID_ARGUMENT}),
    "a tag that is a path": (publish(tags=["../v1"]), {Code.INVALID_ARGUMENT}),
    "a tag of a megabyte": (publish(tags=["v" * MIB]), {Code.INVALID_ARGUMENT}),
    "an adapter of a megabyte": (publish(adapter="a/" + "b" * MIB), {Code.INVALID_ARGUMENT}),
    "a reference of a megabyte": (
        lambda c: c.call("Resolve", pb.ResolveRequest(reference="a" * MIB)),
        {Code.INVALID_ARGUMENT},
    ),
    "a reference with a nul": (
        lambda c: c.call("Resolve", pb.ResolveRequest(reference="mine/secret:v1\0")),
        {Code.INVALID_ARGUMENT},
    ),
    "an alias to another tenant": (
        lambda c: c.call("SetAlias", pb.SetAliasRequest(adapter=ADAPTER, alias="x", target="theirs/secret:v1")),
        {Code.INVALID_ARGUMENT},
    ),
    "an alias that is a path": (
        lambda c: c.call("SetAlias", pb.SetAliasRequest(adapter=ADAPTER, alias="../x", target="v1")),
        {Code.INVALID_ARGUMENT},
    ),
    "an etag of a megabyte": (
        lambda c: c.call(
            "SetAlias", pb.SetAliasRequest(adapter=ADAPTER, alias="x", target="v1", expected_etag="e" * MIB)
        ),
        {Code.ABORTED},
    ),
    "a reason of a megabyte": (
        lambda c: c.call("Yank", pb.YankRequest(reference="mine/secret:v1", reason="r" * MIB)),
        {Code.INVALID_ARGUMENT},
    ),
    "a reason that moves the cursor": (
        lambda c: c.call("Yank", pb.YankRequest(reference="mine/secret:v1", reason="\x1b[2Jgone\0")),
        {Code.INVALID_ARGUMENT},
    ),
    "a thousand million adapters to a page": (
        lambda c: c.call("ListAdapters", pb.ListAdaptersRequest(page_size=10**9)),
        {Code.INVALID_ARGUMENT},
    ),
    "fewer than no adapters to a page": (
        lambda c: c.call("ListVersions", pb.ListVersionsRequest(adapter=ADAPTER, page_size=-1)),
        {Code.INVALID_ARGUMENT},
    ),
    "metadata without end": (
        lambda c: c.call("WhoAmI", pb.WhoAmIRequest(), [(f"x-{i}", "y" * 1000) for i in range(100)]),
        {Code.RESOURCE_EXHAUSTED},
    ),
    "two tokens": (
        lambda c: c.call("WhoAmI", pb.WhoAmIRequest(), [("authorization", "Bearer x")]),
        {Code.UNAUTHENTICATED},
    ),
}
for _token in ("..", "\0", "9" * 100, "-1", "mine/", "W10=", "bnVsbA==", "x" * MIB, "٣"):
    for _method, _request in {
        "ListAdapters": pb.ListAdaptersRequest(page_token=_token),
        "ListVersions": pb.ListVersionsRequest(adapter=ADAPTER, page_token=_token),
        "ListAliasMoves": pb.ListAliasMovesRequest(adapter=ADAPTER, page_token=_token),
        "SearchVersions": pb.SearchVersionsRequest(page_token=_token),
    }.items():
        REFUSED[f"{_method} after {_token[:20]!r}"] = (
            lambda c, method=_method, request=_request: c.call(method, request),  # type: ignore[misc]
            {Code.INVALID_ARGUMENT},
        )


@pytest.mark.parametrize("case", REFUSED)
def test_abuse_is_answered_with_its_status(case: str, caller: Caller) -> None:
    call, codes = REFUSED[case]
    try:
        call(caller)
        found = Code.OK
    except grpc.RpcError as error:
        found = error.code()
    assert found in codes


def test_an_upload_id_with_the_namespaces_own_mark_and_no_size_is_none(caller: Caller, tenants: Tenants) -> None:
    upload = f"{tenants.own_blob[7:]}-x-{owner_of('mine')}"
    with pytest.raises(grpc.RpcError) as caught:
        caller.call("QueryUpload", pb.QueryUploadRequest(upload_id=upload))
    assert caught.value.code() is Code.NOT_FOUND


@pytest.mark.parametrize(("offset", "limit"), [(-1, 0), (0, -1), (1 << 40, 0), ((1 << 63) - 1, (1 << 63) - 1)])
def test_parts_of_a_blob_beyond_it_are_refused(caller: Caller, tenants: Tenants, offset: int, limit: int) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        read(offset, limit, tenants.own_blob)(caller)
    assert caught.value.code() is Code.OUT_OF_RANGE


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic d2VmdDp3ZWZ0",
        "Bearer weft_" + "0" * 16 + "_" + "0" * 64,
        "Bearer " + "x" * 4000,
    ],
)
def test_what_is_no_token_is_told_nothing(said: str, tenants: Tenants) -> None:
    with Caller(tenants.server.address, None) as caller:
        told = set()
        for reference in ("theirs/secret:v1", "nobody/secret:v1"):
            with pytest.raises(grpc.RpcError) as caught:
                caller.call("Resolve", pb.ResolveRequest(reference=reference), [("authorization", said)])
            assert caught.value.code() is Code.UNAUTHENTICATED
            told.add((caught.value.details(), str(caught.value.trailing_metadata())))
        assert len(told) == 1


def asked_about(adapter: str, digest: str, blob: str) -> dict[str, tuple[str, Any]]:
    """Everything that can be asked about an adapter and its bytes."""
    exact = f"{adapter}@{digest}"
    return {
        "resolve": ("Resolve", pb.ResolveRequest(reference=adapter)),
        "resolve a tag": ("Resolve", pb.ResolveRequest(reference=f"{adapter}:v1")),
        "resolve a digest": ("Resolve", pb.ResolveRequest(reference=exact)),
        "resolve another digest": ("Resolve", pb.ResolveRequest(reference=f"{adapter}@{ZERO}")),
        "list versions": ("ListVersions", pb.ListVersionsRequest(adapter=adapter)),
        "list moves": ("ListAliasMoves", pb.ListAliasMovesRequest(adapter=adapter, alias="production")),
        "list signatures": ("ListSignatures", pb.ListSignaturesRequest(reference=exact)),
        "verify": ("VerifyVersion", pb.VerifyVersionRequest(reference=exact)),
        "yank": ("Yank", pb.YankRequest(reference=exact, reason="mine now")),
        "delete": ("DeleteVersion", pb.DeleteVersionRequest(reference=exact)),
        "move an alias": ("SetAlias", pb.SetAliasRequest(adapter=adapter, alias="production", target=digest)),
        "delete an alias": ("DeleteAlias", pb.DeleteAliasRequest(adapter=adapter, alias="production")),
        "roll back": ("RollbackAlias", pb.RollbackAliasRequest(adapter=adapter, alias="production", steps=1)),
        "read a blob": ("ReadBlob", pb.ReadBlobRequest(digest=blob)),
        "read a part of a blob": ("ReadBlob", pb.ReadBlobRequest(digest=blob, offset_bytes=1, limit_bytes=1)),
        "ask for a blob": ("FindMissingBlobs", pb.FindMissingBlobsRequest(digests=[blob], adapter=ADAPTER)),
        "ask for a blob for them": ("FindMissingBlobs", pb.FindMissingBlobsRequest(digests=[blob], adapter=adapter)),
        "send a blob": ("StartUpload", pb.StartUploadRequest(digest=blob, size_bytes=11, adapter=ADAPTER)),
        "publish there": ("Publish", pb.PublishRequest(adapter=adapter, manifest_json=b"{}")),
        "list their adapters": ("ListAdapters", pb.ListAdaptersRequest(namespace=adapter.partition("/")[0])),
        "search their versions": ("SearchVersions", pb.SearchVersionsRequest(namespace=adapter.partition("/")[0])),
        "search for a digest": ("SearchVersions", pb.SearchVersionsRequest(label=digest)),
    }


def said_of(caller: Caller, method: str, request: Any) -> tuple[object, ...]:
    """Everything that an answer says."""
    try:
        answer = caller.call(method, request)
    except grpc.RpcError as error:
        known = from_rpc_error(error)
        return error.code(), known.message, known.reason, known.metadata, known.violations
    return Code.OK, str(answer)


def test_what_is_not_yours_is_answered_as_what_is_not_there(caller: Caller, tenants: Tenants) -> None:
    """The same status, message, reason and details, and so the same size: not even existence is told."""
    absent = "sha256:" + "e" * 64
    theirs = asked_about("theirs/secret", tenants.digest, tenants.blob)
    for what, (method, request) in asked_about("nobody/secret", tenants.digest, absent).items():
        nothing = said_of(caller, method, request)
        something = said_of(caller, *theirs[what])
        expected = repr(nothing).replace("nobody", "theirs").replace("e" * 64, tenants.blob[7:])
        assert repr(something) == expected, what
    with Caller(tenants.server.address, tenants.theirs) as owner:
        assert owner.call("Resolve", pb.ResolveRequest(reference="theirs/secret:v1")).version.digest == tenants.digest


def abuse_streams(tenants: Tenants) -> None:
    """Streams that are dropped, stalled or dripped into, and connections that say nothing."""
    with Caller(tenants.server.address, tenants.mine) as caller:
        upload = caller.start(b"x" * MIB)
        for _ in range(20):
            blocked = threading.Event()

            def dripping(event: threading.Event = blocked) -> Iterator[pb.WriteUploadRequest]:
                at = caller.call("QueryUpload", pb.QueryUploadRequest(upload_id=upload)).committed_size_bytes
                for offset in range(at, at + 3):
                    yield pb.WriteUploadRequest(upload_id=upload, offset_bytes=offset, chunk=b"x")
                event.wait(30)

            writing = caller.future("WriteUpload", dripping())
            writing.cancel()
            blocked.set()
        for _ in range(20):
            reading = caller.begin("ReadBlob", pb.ReadBlobRequest(digest=tenants.own_blob))
            next(iter(reading))
            reading.cancel()
        for _ in range(20):
            caller.begin("WatchAliases", pb.WatchAliasesRequest(adapters=[ADAPTER])).cancel()
        host, _, port = tenants.server.address.rpartition(":")
        idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(300)]
        try:
            for connection in idle[:50]:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64)
            assert caller.call("Resolve", pb.ResolveRequest(reference="mine/secret:v1")).version.digest
        finally:
            for connection in idle:
                connection.close()
        for call, _ in REFUSED.values():
            try:
                call(caller)
            except grpc.RpcError:
                continue


def test_the_server_is_afterwards_as_it_was(tenants: Tenants) -> None:
    tenants.gives_back(lambda: abuse_streams(tenants))
    with Caller(tenants.server.address, tenants.mine) as caller:
        assert caller.call("Resolve", pb.ResolveRequest(reference="mine/secret:v1")).version.digest
