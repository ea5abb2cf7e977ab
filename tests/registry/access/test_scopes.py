"""Which right each call needs: every RPC of both services, from their descriptors. A new RPC needs a line here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from tests.registry.access.lab import Asking, asking
from tests.registry.lab import upload_all
from weft.v1 import registry_admin_pb2 as admin_pb
from weft.v1 import registry_pb2 as pb
from weft_registry import digest as digests
from weft_registry.access.blob_access import owner_of
from weft_registry.api import Version
from weft_registry.blobs.store import upload_id_of
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.principal import anonymous_reader
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

NAME = AdapterName("team", "support")
BYTES = b"what an upload brings"
DIGEST = digests.of_bytes(BYTES)
OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
DENIED, NOT_FOUND = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND


@dataclass
class World:
    """A registry in which there is something to do."""

    server: Asking
    version: Version
    manifest_bytes: bytes


@dataclass(frozen=True)
class Rule:
    """What a call needs, and what others are answered."""

    scope: str
    """In the namespace "team"; "" for every token."""
    request: Callable[[World], Message]
    refused: grpc.StatusCode = DENIED
    """Without the scope, and with it in another namespace."""
    everywhere: bool = False
    """The scope is needed in all namespaces."""
    elsewhere: grpc.StatusCode | None = None
    """With the scope in another namespace, where that is another answer."""
    prepare: Callable[[World], Any] = lambda world: None


def begin_upload(world: World) -> None:
    client = world.server.client(world.server.token("starter", "publish"))
    client._stub.StartUpload(pb.StartUploadRequest(digest=DIGEST, size_bytes=len(BYTES), adapter=str(NAME)))


UPLOAD = upload_id_of(DIGEST, len(BYTES), owner_of("team"))
PROTECTED = admin_pb.ProtectedAlias(namespace="team", alias="gold")


def protect(world: World) -> None:
    world.server.registry.protect_alias("team", "", "gold", [])


def move_twice(world: World) -> None:
    registry = world.server.registry
    registry.set_alias(NAME, "rolling", "v1")
    registry.set_alias(NAME, "rolling", "v2")


RULES: dict[str, Rule] = {
    "FindMissingBlobs": Rule("publish", lambda w: pb.FindMissingBlobsRequest(digests=[DIGEST], adapter=str(NAME))),
    "StartUpload": Rule(
        "publish", lambda w: pb.StartUploadRequest(digest=DIGEST, size_bytes=len(BYTES), adapter=str(NAME))
    ),
    "WriteUpload": Rule(
        "publish",
        lambda w: pb.WriteUploadRequest(upload_id=UPLOAD, chunk=BYTES, finish=True),
        prepare=begin_upload,
        elsewhere=NOT_FOUND,
    ),
    "QueryUpload": Rule(
        "publish", lambda w: pb.QueryUploadRequest(upload_id=UPLOAD), prepare=begin_upload, elsewhere=NOT_FOUND
    ),
    "Publish": Rule(
        "publish",
        lambda w: pb.PublishRequest(
            adapter=str(NAME), manifest_json=w.manifest_bytes, tags=["v1"], request_id=str(uuid.uuid4())
        ),
    ),
    "Resolve": Rule("read", lambda w: pb.ResolveRequest(reference=f"{NAME}:v1"), NOT_FOUND),
    "ListAdapters": Rule("", lambda w: pb.ListAdaptersRequest()),
    "ListVersions": Rule("read", lambda w: pb.ListVersionsRequest(adapter=str(NAME)), NOT_FOUND),
    "ReadBlob": Rule("read", lambda w: pb.ReadBlobRequest(digest=w.version.manifest.files[0].sha256), NOT_FOUND),
    "SetAlias": Rule(
        "alias", lambda w: pb.SetAliasRequest(adapter=str(NAME), alias="production", target="v1"), elsewhere=NOT_FOUND
    ),
    "DeleteAlias": Rule(
        "alias",
        lambda w: pb.DeleteAliasRequest(adapter=str(NAME), alias="rolling"),
        prepare=move_twice,
        elsewhere=NOT_FOUND,
    ),
    "RollbackAlias": Rule(
        "alias",
        lambda w: pb.RollbackAliasRequest(adapter=str(NAME), alias="rolling"),
        prepare=move_twice,
        elsewhere=NOT_FOUND,
    ),
    "ListAliasMoves": Rule("read", lambda w: pb.ListAliasMovesRequest(adapter=str(NAME)), NOT_FOUND),
    "WatchAliases": Rule("", lambda w: pb.WatchAliasesRequest()),
    "DeleteVersion": Rule("publish", lambda w: pb.DeleteVersionRequest(reference=f"{NAME}:v1"), elsewhere=NOT_FOUND),
    "SearchVersions": Rule("", lambda w: pb.SearchVersionsRequest()),
    "PutSignature": Rule(
        "publish",
        lambda w: pb.PutSignatureRequest(reference=f"{NAME}:v1", key_digest="sha256:" + "0" * 64, bundle=b"{}"),
        elsewhere=NOT_FOUND,
    ),
    "ListSignatures": Rule("read", lambda w: pb.ListSignaturesRequest(reference=f"{NAME}:v1"), NOT_FOUND),
    "WhoAmI": Rule("", lambda w: pb.WhoAmIRequest()),
    "Yank": Rule("publish", lambda w: pb.YankRequest(reference=f"{NAME}:v1"), elsewhere=NOT_FOUND),
    "VerifyVersion": Rule("read", lambda w: pb.VerifyVersionRequest(reference=f"{NAME}:v1"), NOT_FOUND),
    "CreateToken": Rule(
        "admin",
        lambda w: admin_pb.CreateTokenRequest(name=f"n{uuid.uuid4().hex}", scopes=["read"], namespaces=["team"]),
    ),
    "ListTokens": Rule("admin", lambda w: admin_pb.ListTokensRequest(), elsewhere=OK),
    "RevokeToken": Rule(
        "admin",
        lambda w: admin_pb.RevokeTokenRequest(token="to-end"),
        prepare=lambda w: w.server.token("to-end", "read"),
        elsewhere=NOT_FOUND,
    ),
    "GetQuota": Rule("admin", lambda w: admin_pb.GetQuotaRequest(namespace="team")),
    "SetQuota": Rule(
        "admin",
        lambda w: admin_pb.SetQuotaRequest(quota=admin_pb.Quota(namespace="team", max_versions=9)),
        everywhere=True,
    ),
    "ProtectAlias": Rule("admin", lambda w: admin_pb.ProtectAliasRequest(alias=PROTECTED)),
    "UnprotectAlias": Rule(
        "admin", lambda w: admin_pb.UnprotectAliasRequest(namespace="team", alias="gold"), prepare=protect
    ),
    "ListProtectedAliases": Rule("admin", lambda w: admin_pb.ListProtectedAliasesRequest(namespace="team")),
    "ListAuditEntries": Rule("admin", lambda w: admin_pb.ListAuditEntriesRequest(namespace="team")),
    "CollectGarbage": Rule("admin", lambda w: admin_pb.CollectGarbageRequest(dry_run=True), everywhere=True),
    "CheckRegistry": Rule("admin", lambda w: admin_pb.CheckRegistryRequest(), everywhere=True),
}
METHODS = {
    method.name: method
    for service in (
        pb.DESCRIPTOR.services_by_name["RegistryService"],
        admin_pb.DESCRIPTOR.services_by_name["RegistryAdminService"],
    )
    for method in service.methods
}
SCOPES = ("read", "publish", "alias", "admin")


@pytest.fixture
def world(server: Asking, new_artifact: Callable[..., Path]) -> World:
    registry = server.registry
    version = push(registry, new_artifact(seed=1), NAME, tags=["v1"]).version
    push(registry, new_artifact(seed=2), NAME, tags=["v2"])
    return World(server, version, version.manifest_bytes)


def call(target: str, name: str, request: Message | bytes, token: str | None) -> grpc.StatusCode:
    """The status that a call ends with; of a stream, that of its first answer."""
    method = METHODS[name]
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        path = f"/{method.containing_service.full_name}/{method.name}"
        metadata = [("authorization", f"Bearer {token}")] if token else []
        sending, answering = method.client_streaming, method.server_streaming
        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
        }
        invoke = kinds[sending, answering](path, _same, _same)
        try:
            answer = invoke(iter([data]) if sending else data, metadata=metadata, timeout=20)
            if answering:
                next(iter(answer), None)
                answer.cancel()
            return OK
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return code


def _same(data: bytes) -> bytes:
    return data


def test_every_rpc_has_its_line() -> None:
    assert RULES.keys() == METHODS.keys()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    from weft_registry.home import Home

    registry = EmbeddedRegistry(Home(tmp_path_factory.mktemp("empty")))
    with asking(registry) as server:
        yield server
    registry.close()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_call_is_answered_without_a_valid_token(empty: Asking, name: str) -> None:
    assert call(empty.target, name, b"", None) == UNAUTHENTICATED
    assert call(empty.target, name, b"", "weft_" + "0" * 16 + "_" + "0" * 64) == UNAUTHENTICATED
    assert call(empty.target, name, b"", "x") == UNAUTHENTICATED


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_call_needs_its_scope_in_its_namespace_and_no_more(world: World, name: str) -> None:
    rule, server = RULES[name], world.server
    rule.prepare(world)
    request = rule.request(world)
    if not rule.scope:
        assert call(server.target, name, request, server.token("any", "alias", namespaces=["acme"])) == OK
        return
    others = [scope for scope in SCOPES if scope not in (rule.scope, "admin")]
    assert call(server.target, name, request, server.token("others", *others)) == rule.refused
    away = server.token("away", *SCOPES, namespaces=["acme"])
    assert call(server.target, name, request, away) == (rule.elsewhere or rule.refused)
    if rule.everywhere:
        assert call(server.target, name, request, server.token("lead", *SCOPES)) == rule.refused
    where = ["*"] if rule.everywhere else ["team"]
    exact = call(server.target, name, request, server.token("exact", rule.scope, namespaces=where))
    # A made-up signature is refused for what it is.
    assert exact == (grpc.StatusCode.INVALID_ARGUMENT if name == "PutSignature" else OK)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_who_may_read_anonymously_may_do_nothing_else(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path], name: str
) -> None:
    version = push(registry, new_artifact(seed=1), NAME, tags=["v1"]).version
    push(registry, new_artifact(seed=2), NAME, tags=["v2"])
    with asking(registry, anonymous_reader()) as server:
        world = World(server, version, version.manifest_bytes)
        rule = RULES[name]
        rule.prepare(world)
        expected = OK if rule.scope in ("", "read") else UNAUTHENTICATED
        assert call(server.target, name, rule.request(world), None) == expected


def test_health_and_reflection_answer_everybody(registry: EmbeddedRegistry) -> None:
    import asyncio

    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from weft_registry.access.options import AccessOptions
    from weft_registry.home import Home
    from weft_registry.serve.options import RegistryServeOptions
    from weft_registry.serve.serving import running

    async def ask() -> tuple[int, bool]:
        options = RegistryServeOptions(
            port=0, http_port=0, grace_s=0, access=AccessOptions(required=True), home=Home.from_environment()
        )
        async with running(options) as server, grpc.aio.insecure_channel(server.address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
            closed = False
            try:
                await channel.unary_unary("/weft.v1.RegistryService/WhoAmI", _same, _same)(b"", timeout=20)
            except grpc.aio.AioRpcError as error:
                closed = error.code() == UNAUTHENTICATED
            return health.status, closed

    assert asyncio.run(ask()) == (health_pb2.HealthCheckResponse.SERVING, True)


def test_a_push_with_aliases_needs_both_scopes(world: World, new_artifact: Callable[..., Path]) -> None:
    from weft_registry.errors import ForbiddenError

    directory = new_artifact(seed=3)
    client = world.server.client(world.server.token("publisher", "publish"))
    manifest = upload_all(client, directory)
    with pytest.raises(ForbiddenError, match="alias"):
        client.publish(NAME, manifest, aliases=["production"])
    assert client.publish(NAME, manifest).version.published_by == "publisher"
    both = world.server.client(world.server.token("both", "publish", "alias"))
    assert both.publish(NAME, manifest, aliases=["production"]).existing
