"""Blobs are shared on disk between namespaces, and nobody can tell: what another tenant alone holds is not there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.registry.access.lab import Asking
from tests.registry.lab import upload_all
from weft.v1 import registry_pb2 as pb
from weft_registry import artifact
from weft_registry.access.blob_access import owner_of
from weft_registry.catalog import leases, records
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    CorruptionError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    WeftError,
)
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.transfer import pull, push

NewArtifact = Callable[..., Path]
OURS, THEIRS = AdapterName("team", "support"), AdapterName("acme", "private")
BOTH = frozenset({Scope.READ, Scope.PUBLISH, Scope.ALIAS})


def tenant(registry: EmbeddedRegistry, *namespaces: str, scopes: frozenset[Scope] = BOTH) -> EmbeddedRegistry:
    return registry.acting_as(Principal("-".join(namespaces), scopes, frozenset(namespaces)))


def refusal(function: Callable[[], object]) -> tuple[type[WeftError], str, str]:
    with pytest.raises(WeftError) as caught:
        function()
    return type(caught.value), caught.value.reason, caught.value.message


def test_what_another_tenant_alone_holds_counts_as_missing(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    version = push(registry, new_artifact(), THEIRS).version
    digests = sorted(file.sha256 for file in version.manifest.files)
    us, them = tenant(registry, "team"), tenant(registry, "acme")
    assert us.find_missing(digests, OURS) == digests
    assert them.find_missing(digests, THEIRS) == []
    # Not by naming their adapter either.
    with pytest.raises(ForbiddenError):
        us.find_missing(digests, THEIRS)


def test_a_manifest_of_anothers_digests_is_refused_as_one_of_nobodys(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    manifest = artifact.read(directory).canonical_bytes()
    us = tenant(registry, "team")
    nobodys = refusal(lambda: us.publish(OURS, manifest))
    push(registry, directory, THEIRS)
    assert refusal(lambda: us.publish(OURS, manifest)) == nobodys
    assert nobodys[:2] == (PreconditionError, "BLOBS_MISSING")
    assert registry.list_adapters("team") == []


def test_a_blob_of_others_reads_as_one_that_is_not_there(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    digest = push(registry, new_artifact(), THEIRS).version.manifest.files[0].sha256
    nobodys = "sha256:" + "0" * 64
    us = tenant(registry, "team")
    for read in (
        lambda r, d: b"".join(r.read_blob(d)),
        lambda r, d: r.open_blob(d).close(),
        lambda r, d: r.verify_blob(d),
    ):
        theirs = refusal(partial(read, us, digest))
        assert theirs[2].replace(digest, nobodys) == refusal(partial(read, us, nobodys))[2]
        assert theirs[:2] == refusal(partial(read, registry, nobodys))[:2] == (NotFoundError, "BLOB_NOT_FOUND")
        read(tenant(registry, "acme"), digest)
        # Who may publish there and not read it has no use for others' bytes.
        assert refusal(partial(read, tenant(registry, "acme", scopes=frozenset({Scope.PUBLISH})), digest))


def test_an_upload_of_what_another_holds_asks_for_every_byte(
    server: Asking, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    push(server.registry, directory, THEIRS)
    client = server.client(server.token("us", "publish", "read"))
    file = max(artifact.read(directory).files, key=lambda each: each.size)
    start = client._stub.StartUpload(
        pb.StartUploadRequest(digest=file.sha256, size_bytes=file.size, adapter=str(OURS)), timeout=20
    )
    assert (start.complete, start.committed_size_bytes) == (False, 0)
    sent: list[int] = []
    client.upload(directory / file.path, file.sha256, file.size, sent.append, OURS)
    assert sum(sent) == file.size
    # From then on it is ours as well.
    assert client.find_missing([file.sha256], OURS) == []
    assert b"".join(client.read_blob(file.sha256)) == (directory / file.path).read_bytes()
    again = client._stub.StartUpload(
        pb.StartUploadRequest(digest=file.sha256, size_bytes=file.size, adapter=str(OURS)), timeout=20
    )
    assert again.complete


def test_wrong_bytes_prove_nothing(server: Asking, new_artifact: NewArtifact, tmp_path: Path) -> None:
    directory = new_artifact()
    push(server.registry, directory, THEIRS)
    file = artifact.read(directory).files[0]
    wrong = tmp_path / "wrong"
    wrong.write_bytes(bytes(file.size))
    client = server.client(server.token("us", "publish", "read"))
    with pytest.raises(CorruptionError):
        client.upload(wrong, file.sha256, file.size, adapter=OURS)
    # In this process, too, where the store has the blob already and would not look.
    with pytest.raises(CorruptionError):
        tenant(server.registry, "team").upload(wrong, file.sha256, file.size, adapter=OURS)
    assert client.find_missing([file.sha256], OURS) == [file.sha256]
    with pytest.raises(NotFoundError):
        list(client.read_blob(file.sha256))


def test_uploads_of_others_are_not_there(registry: EmbeddedRegistry) -> None:
    digest = "sha256:" + "a" * 64
    us, them = tenant(registry, "team"), tenant(registry, "acme")
    theirs = them.start_upload(digest, 10, THEIRS).upload_id
    them.write_upload(theirs, 0, b"12345")
    ours = us.start_upload(digest, 10, OURS)
    # Not even how far they are.
    assert (ours.upload_id != theirs, ours.committed_bytes) == (True, 0)
    made_up = theirs.replace("a", "b")
    for act in (
        lambda i: us.query_upload(i),
        lambda i: us.write_upload(i, 5, b"6"),
        lambda i: us.finish_upload(i),
    ):
        kind, reason, message = refusal(partial(act, theirs))
        assert (kind, reason) == (NotFoundError, "UPLOAD_NOT_FOUND")
        assert refusal(partial(act, made_up)) == (kind, reason, message.replace(theirs, made_up))
    assert them.query_upload(theirs).committed_bytes == 5


@pytest.mark.parametrize(
    "upload_id", ["", "x", "../../etc/passwd", "a" * 64 + "-5", "a" * 64 + "-5-" + owner_of("acme")]
)
def test_upload_ids_that_nobody_was_given_are_not_there(registry: EmbeddedRegistry, upload_id: str) -> None:
    us = tenant(registry, "team")
    for act in (us.query_upload, us.finish_upload, lambda i: us.write_upload(i, 0, b"")):
        with pytest.raises(NotFoundError):
            act(upload_id)


def test_a_lost_answer_to_the_end_of_an_upload_is_made_good(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    from weft_registry import digest as digests

    data, us = b"bytes", tenant(registry, "team")
    upload = us.start_upload(digests.of_bytes(data), len(data), OURS)
    us.write_upload(upload.upload_id, 0, data)
    assert us.finish_upload(upload.upload_id).complete
    assert us.query_upload(upload.upload_id).complete
    assert us.start_upload(digests.of_bytes(data), len(data), OURS).complete


def test_a_lease_ends_and_with_it_what_nothing_was_published_of(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory, us = new_artifact(), tenant(registry, "team", "more")
    for file in artifact.read(directory).files:
        us.upload(directory / file.path, file.sha256, file.size, adapter=OURS)
    found = [file.sha256 for file in artifact.read(directory).files]
    assert us.find_missing(found, OURS) == []
    assert us.find_missing(found, AdapterName("more", "x")) == found
    with registry._catalog.write() as connection:
        connection.execute(t.blob_leases.update().values(until_us=records.now_us() - 1))
        assert leases.expire(connection) > 0
    assert us.find_missing(found, OURS) == found


def test_what_is_told_to_be_there_is_leased(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    found = [file.sha256 for file in push(registry, new_artifact(), OURS).version.manifest.files]
    with registry._catalog.write() as connection:
        connection.execute(t.blob_leases.delete())
    tenant(registry, "team").find_missing(found, OURS)
    with registry._catalog.read() as connection:
        assert leases.held(connection, found) == set(found)
        assert leases.held(connection, found, ["team"], leases.LEASE_S - 60) == set(found)
        assert leases.held(connection, found, ["acme"]) == set()


def test_names_of_others_are_in_no_answer(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    push(registry, new_artifact(seed=1), THEIRS, tags=["v1"])
    push(registry, new_artifact(seed=2), OURS, tags=["v1"])
    us = tenant(registry, "team")
    assert [str(summary.adapter) for summary in us.list_adapters()] == [str(OURS)]
    assert us.list_adapters("acme") == []
    nobodys = refusal(lambda: us.resolve("nobody/private"))
    for ask in (us.resolve, us.verify, lambda r: us.list_versions(AdapterName.parse(r.partition(":")[0]))):
        kind, reason, message = refusal(partial(ask, str(THEIRS)))
        assert (kind, reason, message.replace("acme", "nobody")) == nobodys
    # The nearest names of a slip are those that one may read.
    _, _, message = refusal(lambda: us.resolve("team/suport"))
    assert "team/support" in message
    _, _, message = refusal(lambda: us.resolve("team/private"))
    assert "acme" not in message
    assert "acme/private" in refusal(lambda: registry.resolve("acme/privat"))[2]


def test_a_token_of_several_namespaces_says_which_it_sends_for(server: Asking) -> None:
    digest = "sha256:" + "0" * 64
    several = server.client(server.token("several", "publish", namespaces=["acme", "team"]))
    with pytest.raises(InvalidInputError, match="which adapter"):
        several.find_missing([digest])
    assert several.find_missing([digest], OURS) == [digest]
    one = server.client(server.token("one", "publish", namespaces=["team"]))
    assert one.find_missing([digest]) == [digest]


def test_push_and_pull_go_on_as_ever_with_a_token(server: Asking, new_artifact: NewArtifact, tmp_path: Path) -> None:
    client = server.client(server.token("us", "publish", "read"))
    first = push(client, new_artifact(seed=1), OURS, tags=["v1"])
    assert push(client, new_artifact(seed=2), OURS, tags=["v2"]).version.published_by == "us"
    pulled = pull(client, f"{OURS}:v1", tmp_path / "pulled")
    assert pulled.digest == first.version.digest


def test_two_tenants_with_the_same_bytes_share_one_blob(
    server: Asking, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = new_artifact()
    for index, name in enumerate((OURS, THEIRS)):
        token = server.token(f"t{index}", "publish", "read", namespaces=[name.namespace])
        upload_all_of(server, token, directory, name)
    held = list(server.registry.blobs.list_blobs())
    assert sorted(blob.digest for blob in held) == sorted(file.sha256 for file in artifact.read(directory).files)


def upload_all_of(server: Asking, token: str, directory: Path, name: AdapterName) -> None:
    client = server.client(token)
    manifest = upload_all(client, directory)
    assert not client.publish(name, manifest).existing
