"""A mirror: brings once, serves without asking, says when it could not ask, and refuses what is not what was promised.

The upstream is a real registry in a server of its own; it can be stopped, and started again on the same port.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from tests.registry.hub_lab import ask
from tests.registry.keys import make_keys
from tests.registry.lab import serving
from tests.registry.mirror_lab import NAME, UpstreamServer, eventually, publish
from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_client.cli.app import app
from weft_registry import artifact, staleness, transfer
from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    CorruptionError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.mirror import fetches
from weft_registry.mirror import registry as mirror_registry
from weft_registry.mirror.follower import Follower
from weft_registry.mirror.registry import MirrorRegistry
from weft_registry.mirror.upstream import UnreachableError, Upstream
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.serve.staleness import StalenessInterceptor
from weft_registry.signing.keys import digest_of_private, read_public
from weft_registry.signing.sign import require, sign
from weft_registry.workspaces.workspaces import Workspaces

NewArtifact = Callable[..., Path]
PIECE = 1 << 16


@pytest.fixture
def mirror(upstream: UpstreamServer, home: Home) -> Iterator[MirrorRegistry]:
    registry = open_mirror(upstream, home)
    yield registry
    registry.close()


def open_mirror(upstream: UpstreamServer, home: Home) -> MirrorRegistry:
    """One that asks again at once: what is tested here does not depend on how long it would wait."""
    return MirrorRegistry(home, Upstream(upstream.target, ask_s=10.0, retry_s=0.0))


def reach_again(mirror: MirrorRegistry) -> None:
    """A channel takes a moment to find a server that is back."""

    def answers() -> bool:
        try:
            mirror.upstream.ask(lambda remote: remote.list_adapters("nobody"))
        except UnreachableError:
            return False
        return True

    eventually(answers)


def test_the_first_pull_goes_through_and_the_second_asks_for_no_bytes(
    mirror: MirrorRegistry,
    upstream: UpstreamServer,
    origin: EmbeddedRegistry,
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    version = publish(origin, new_artifact(), tags=["v1"], aliases=["live"])
    pulled = transfer.pull(mirror, "acme/topics:live", tmp_path / "one")
    assert pulled == version
    assert upstream.calls["ReadBlob"] == len(version.manifest.files)
    upstream.calls.clear()
    transfer.pull(mirror, f"acme/topics@{version.digest}", tmp_path / "two")
    assert not upstream.calls, "a digest that is held is never asked for"
    transfer.pull(mirror, "acme/topics:v1", tmp_path / "three")
    assert upstream.calls == {"Resolve": 1}
    for name in ("one", "two", "three"):
        assert artifact.read(tmp_path / name).digest() == version.digest


def test_with_the_upstream_away_it_serves_what_it_holds_and_says_so(
    mirror: MirrorRegistry,
    upstream: UpstreamServer,
    origin: EmbeddedRegistry,
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    first = publish(origin, new_artifact(), tags=["v1"], aliases=["live"])
    transfer.pull(mirror, "acme/topics:live", tmp_path / "one")
    upstream.stop()
    with staleness.collecting() as notes:
        assert transfer.pull(mirror, "acme/topics:live", tmp_path / "two").digest == first.digest
    assert len(notes) == 1
    assert notes[0].startswith("since=")
    assert notes[0].endswith(f"; upstream={upstream.target}")
    with staleness.collecting() as notes:
        mirror.resolve(f"acme/topics@{first.digest}")
    assert notes == [], "what a digest names cannot be out of date"
    with pytest.raises(UnreachableError, match="is not held here, and the upstream") as caught:
        mirror.resolve("acme/other:live")
    assert (caught.value.reason, caught.value.metadata["upstream"]) == ("UPSTREAM_UNREACHABLE", upstream.target)
    # It moves on upstream while nobody can see it, and here once they can.
    second = publish(origin, new_artifact(seed=1), aliases=["live"])
    assert mirror.resolve("acme/topics:live").digest == first.digest
    upstream.start()
    reach_again(mirror)
    with staleness.collecting() as notes:
        assert mirror.resolve("acme/topics:live").digest == second.digest
    assert notes == []
    assert mirror.upstream.failed_since is None


def test_the_last_label_seen_outlives_the_process(
    upstream: UpstreamServer, origin: EmbeddedRegistry, home: Home, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    version = publish(origin, new_artifact(), aliases=["live"])
    before = open_mirror(upstream, home)
    transfer.pull(before, "acme/topics:live", tmp_path / "one")
    before.close()
    upstream.stop()
    after = open_mirror(upstream, home)
    try:
        assert transfer.pull(after, "acme/topics:live", tmp_path / "two").digest == version.digest
        assert after.resolve("acme/topics").digest == version.digest, "latest came with it"
    finally:
        after.close()


def test_an_upstream_that_is_away_is_left_alone_for_a_while(
    upstream: UpstreamServer, origin: EmbeddedRegistry, home: Home, new_artifact: NewArtifact
) -> None:
    publish(origin, new_artifact(), aliases=["live"])
    mirror = MirrorRegistry(home, Upstream(upstream.target, ask_s=10.0, retry_s=3600.0))
    try:
        mirror.resolve("acme/topics:live")
        upstream.stop()
        mirror.resolve("acme/topics:live")
        upstream.start()
        upstream.calls.clear()
        for _ in range(3):
            mirror.resolve("acme/topics:live")
        assert not upstream.calls
    finally:
        mirror.close()


def test_two_clients_at_once_fetch_once_and_bytes_come_before_the_whole_is_here(
    mirror: MirrorRegistry,
    upstream: UpstreamServer,
    origin: EmbeddedRegistry,
    new_artifact: NewArtifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The upstream is held after the first pieces: both readers get theirs, of one fetch, before it goes on."""
    monkeypatch.setattr(fetches, "CHUNK_BYTES", PIECE)
    card = "0123456789abcde\n" * (8 * PIECE // 16)
    version = publish(origin, new_artifact(readme=card))
    mirror.resolve("acme/topics")
    digest = next(file.sha256 for file in version.manifest.files if file.path == "README.md")
    gate, bring = threading.Event(), mirror.upstream.remote.read_blob

    def held_back(*arguments: Any) -> Iterator[bytes]:
        whole = b"".join(bring(*arguments))
        for start in range(0, len(whole), PIECE):
            if start == 4 * PIECE:
                assert gate.wait(60)
            yield whole[start : start + PIECE]

    monkeypatch.setattr(mirror.upstream.remote, "read_blob", held_back)
    readers = [mirror.read_blob(digest) for _ in range(2)]
    begun = [next(reader) for reader in readers]
    assert begun[0] == begun[1] == card[: len(begun[0])].encode()
    gate.set()
    for first, rest in zip(begun, readers, strict=True):
        assert first + b"".join(rest) == card.encode()
    assert upstream.calls["ReadBlob"] == 1
    eventually(lambda: mirror.blobs.missing([digest]) == [])
    assert b"".join(mirror.read_blob(digest)) == card.encode()
    assert upstream.calls["ReadBlob"] == 1


def test_a_part_of_a_blob_waits_for_the_whole(
    mirror: MirrorRegistry, upstream: UpstreamServer, origin: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    version = publish(origin, new_artifact())
    mirror.resolve("acme/topics")
    weights = next(file for file in version.manifest.files if file.path == artifact.WEIGHTS)
    whole = b"".join(origin.read_blob(weights.sha256))
    assert b"".join(mirror.read_blob(weights.sha256, 100, 50)) == whole[100:150]
    with mirror.open_blob(weights.sha256) as file:
        assert file.read() == whole
    assert mirror.verify_blob(weights.sha256) == len(whole)
    assert upstream.calls["ReadBlob"] == 1


def test_wrong_bytes_from_the_upstream_are_refused_and_not_kept(
    mirror: MirrorRegistry,
    origin: EmbeddedRegistry,
    new_artifact: NewArtifact,
    tmp_path: Path,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = publish(origin, new_artifact(readme="x" * (8 * PIECE + 5)), tags=["v1"])
    mirror.resolve("acme/topics:v1")
    digest = next(file.sha256 for file in version.manifest.files if file.path == "README.md")
    bring = mirror.upstream.remote.read_blob
    lies: list[Callable[[bytes], bytes]] = [
        lambda data: data[:-1] + b"?",
        lambda data: data[:-1],
        lambda data: data + b"more",
        lambda data: b"",
    ]
    for lie in lies:
        monkeypatch.setattr(mirror.upstream.remote, "read_blob", lambda *a, lie=lie: iter([lie(b"".join(bring(*a)))]))
        given: list[bytes] = []
        with pytest.raises(CorruptionError, match="nothing of it is kept"):
            given.extend(mirror.read_blob(digest))
        assert sum(map(len, given)) < 8 * PIECE + 5, "nobody ends up with a whole wrong file"
        with pytest.raises(CorruptionError):
            mirror.verify_blob(digest)
        assert mirror.blobs.missing([digest]) == [digest]
    monkeypatch.undo()
    transfer.pull(mirror, "acme/topics:v1", tmp_path / "right")
    eventually(lambda: not any((home.registry / "fetching").iterdir()))


def test_a_manifest_that_is_not_the_versions_is_refused(
    mirror: MirrorRegistry, origin: EmbeddedRegistry, new_artifact: NewArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    version = publish(origin, new_artifact(), tags=["v1"])
    changed = version.manifest_bytes.replace(b"apache-2.0", b"apache-9.0")
    for lie in (
        replace(version, manifest_bytes=changed),
        replace(version, manifest_bytes=b"{}"),
        replace(version, adapter=AdapterName("acme", "other")),
    ):
        monkeypatch.setattr(mirror.upstream.remote, "resolve", lambda _reference, lie=lie: lie)
        with pytest.raises(CorruptionError):
            mirror.resolve("acme/topics:v1")
        assert not mirror.holds(NAME)


def test_what_a_killed_process_left_of_a_fetch_is_removed_and_what_others_fetch_is_not(
    upstream: UpstreamServer, home: Home
) -> None:
    fetching = home.registry / "fetching"
    fetching.mkdir(parents=True)
    for name, age_s in (("old", 7200), ("new", 0)):
        (fetching / name).write_bytes(b"some")
        at = time.time() - age_s
        os.utime(fetching / name, (at, at))
    open_mirror(upstream, home).close()
    assert [path.name for path in fetching.iterdir()] == ["new"]


def test_a_fetch_that_breaks_off_is_told_and_can_be_tried_again(
    mirror: MirrorRegistry, origin: EmbeddedRegistry, new_artifact: NewArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(origin, new_artifact())
    mirror.resolve("acme/topics")
    digest = version.manifest.files[0].sha256

    def broken(*_: Any) -> Iterator[bytes]:
        yield b"some"
        raise UnavailableError("the connection broke")

    monkeypatch.setattr(mirror.upstream.remote, "read_blob", broken)
    with pytest.raises(UnreachableError, match="the connection broke"):
        list(mirror.read_blob(digest))
    monkeypatch.undo()
    assert b"".join(mirror.read_blob(digest)) == b"".join(origin.read_blob(digest))


def test_blobs_of_versions_that_were_never_asked_for_cannot_be_read_through(
    mirror: MirrorRegistry, upstream: UpstreamServer, origin: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    """Not even by a caller that may read everything here: digests are not asked for on the mirror's token."""
    version = publish(origin, new_artifact())
    for file in version.manifest.files:
        with pytest.raises(NotFoundError):
            mirror.read_blob(file.sha256)
    assert upstream.calls["ReadBlob"] == 0


def test_who_may_read_is_decided_here_before_the_upstream_is_asked(
    mirror: MirrorRegistry, upstream: UpstreamServer, origin: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    version = publish(origin, new_artifact(), tags=["v1"])
    stranger = mirror.acting_as(Principal("stranger", frozenset({Scope.READ}), frozenset({"other"})))
    reader = mirror.acting_as(Principal("reader", frozenset({Scope.READ}), frozenset({"acme"})))
    for what in (
        lambda: stranger.resolve("acme/topics:v1"),
        lambda: stranger.resolve_prefix(NAME, version.digest[:20]),
        lambda: stranger.list_versions(NAME),
        lambda: stranger.list_signatures("acme/topics:v1"),
    ):
        with pytest.raises(NotFoundError):
            what()
    assert not upstream.calls
    assert reader.resolve("acme/topics:v1").digest == version.digest
    digest = version.manifest.files[0].sha256
    assert b"".join(reader.read_blob(digest))
    with pytest.raises(NotFoundError):
        stranger.read_blob(digest)


def test_nothing_is_written_to_a_mirror(
    mirror: MirrorRegistry, upstream: UpstreamServer, new_artifact: NewArtifact
) -> None:
    with pytest.raises(PreconditionError, match=f"mirror of {upstream.target}") as caught:
        transfer.push(mirror, new_artifact(), NAME)
    assert caught.value.reason == "READ_ONLY_MIRROR"
    for what in (
        lambda: mirror.publish(NAME, b"{}"),
        lambda: mirror.set_alias(NAME, "live", "v1"),
        lambda: mirror.delete_alias(NAME, "live"),
        lambda: mirror.yank("acme/topics:v1"),
        lambda: mirror.delete_version("acme/topics:v1"),
        lambda: mirror.put_signature("acme/topics:v1", "sha256:" + "0" * 64, b""),
    ):
        with pytest.raises(PreconditionError):
            what()
    assert not mirror.holds(NAME)
    for use in (lambda: mirror.workspaces.create_adapter(NAME), lambda: mirror.workspaces.target(NAME, "main")):
        with pytest.raises(PreconditionError, match="is only read"):
            use()


def test_every_method_of_a_registry_has_its_place_in_a_mirror() -> None:
    """Whoever adds one decides: does it ask the upstream, is it refused, or is it about this registry alone?"""
    of_this_registry = {
        "acting_as",
        "alias_cursor",
        "alias_feed",
        "audit_entries",
        "authenticator",
        "backup",
        "blobs",
        "check",
        "close",
        "collect_garbage",
        "create_token",
        "list_adapters",
        "list_alias_moves",
        "list_tokens",
        "note_denied",
        "page_adapters",
        "page_alias_moves",
        "page_audit",
        "page_search",
        "page_summaries",
        "protected_aliases",
        "restore",
        "revoke_token",
        "scratch",
        "search_versions",
        "set_quota",
        "stale_note",
        "usage",
        "watch_aliases",
        "where",
        "who_am_i",
        "workspaces",
    }
    public = {name for name in dir(EmbeddedRegistry) if not name.startswith("_")}
    sorted_out = mirror_registry.ASKS | mirror_registry.BRINGS | mirror_registry.REFUSED
    assert public - of_this_registry - sorted_out == set()
    assert sorted_out <= public
    of_a_workspace = {name for name in dir(Workspaces) if not name.startswith("_")}
    assert of_a_workspace - {"find", "heads"} == mirror_registry.REFUSED_TO_HUB_CLIENTS


def test_labels_follow_the_upstream_wherever_they_go(
    mirror: MirrorRegistry, origin: EmbeddedRegistry, upstream: UpstreamServer, new_artifact: NewArtifact
) -> None:
    versions = [publish(origin, new_artifact(seed=n), tags=[f"v{n}"], aliases=["live"]) for n in range(2)]
    assert mirror.resolve("acme/topics:live") == versions[1]
    origin.set_alias(NAME, "live", "v0")
    # Only the tag is asked for; what has left its version is looked up, lest it be forgotten when nobody answers.
    mirror.resolve("acme/topics:v1")
    upstream.stop()
    assert mirror.resolve("acme/topics:live").digest == versions[0].digest
    upstream.start()
    reach_again(mirror)
    origin.delete_alias(NAME, "live")
    with pytest.raises(NotFoundError, match="nor in the one that it mirrors"):
        mirror.resolve("acme/topics:live")
    upstream.stop()
    with pytest.raises(UnreachableError):
        mirror.resolve("acme/topics:live")
    assert mirror.resolve("acme/topics:v0").digest == versions[0].digest


def test_a_yank_upstream_is_a_yank_here(
    mirror: MirrorRegistry,
    origin: EmbeddedRegistry,
    upstream: UpstreamServer,
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    bad = publish(origin, new_artifact(), tags=["bad"])
    publish(origin, new_artifact(seed=1), tags=["good"])
    transfer.pull(mirror, "acme/topics:bad", tmp_path / "bad")
    origin.yank("acme/topics:bad", "wrong split")
    with pytest.raises(NotFoundError, match=r"acme/topics:bad was yanked \(wrong split\)") as caught:
        mirror.resolve("acme/topics:bad")
    assert (caught.value.reason, caught.value.metadata["digest"]) == ("YANKED", bad.digest)
    assert [version.tags for version in mirror.list_versions(NAME)] == [("good",)]
    upstream.stop()
    assert mirror.resolve(f"acme/topics@{bad.digest}").yanked
    with pytest.raises(UnavailableError):
        mirror.resolve("acme/topics:bad")


def test_versions_are_listed_as_upstream_newest_first_and_from_memory_when_it_is_away(
    mirror: MirrorRegistry,
    origin: EmbeddedRegistry,
    upstream: UpstreamServer,
    new_artifact: NewArtifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror_registry, "LISTED_S", 0.0)
    versions = [publish(origin, new_artifact(seed=n), tags=[f"v{n}"]) for n in range(4)]
    mirror.resolve("acme/topics:v3")
    assert mirror.list_versions(NAME) == [*origin.list_versions(NAME)]
    first, more = mirror.page_versions(NAME, False, 0, 2)
    second, end = mirror.page_versions(NAME, False, first[-1].id, 2)
    assert [row.version.tags for row in (*first, *second)] == [("v3",), ("v2",), ("v1",), ("v0",)]
    assert (more, end) == (True, False)
    assert mirror.resolve_prefix(NAME, versions[0].digest[:47]) == origin.resolve(f"acme/topics@{versions[0].digest}")
    origin.delete_version("acme/topics:v1")
    mirror.list_versions(NAME)
    upstream.stop()
    with staleness.collecting() as notes:
        listed = mirror.list_versions(NAME)
    assert len(notes) == 1
    assert [version.tags for version in listed] == [("v3",), ("v2",), (), ("v0",)]
    assert [summary.adapter for summary in mirror.list_adapters()] == [NAME]


def test_a_commit_that_was_never_asked_for_is_found(
    mirror: MirrorRegistry, origin: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    """By a Hub client that has a commit id from elsewhere."""
    version = publish(origin, new_artifact())
    found = mirror.resolve_prefix(NAME, version.digest[:47])
    assert found is not None
    assert found.digest == version.digest


def test_signatures_come_along_and_hold_when_the_upstream_is_away(
    mirror: MirrorRegistry,
    origin: EmbeddedRegistry,
    upstream: UpstreamServer,
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    private, public = make_keys(tmp_path)
    version = publish(origin, new_artifact(), tags=["v1"])
    key = read_public(public)
    with pytest.raises(PreconditionError, match="no signature"):
        require(mirror, mirror.resolve("acme/topics:v1"), [key])
    origin.put_signature("acme/topics:v1", digest_of_private(private), sign(version, private))
    assert require(mirror, mirror.resolve("acme/topics:v1"), [key]) == key
    upstream.stop()
    assert require(mirror, mirror.resolve("acme/topics:v1"), [key]) == key
    assert mirror.list_signatures("acme/topics:v1") == origin.list_signatures("acme/topics:v1")


def test_moves_upstream_are_moves_here_for_whoever_follows(
    mirror: MirrorRegistry, origin: EmbeddedRegistry, upstream: UpstreamServer, new_artifact: NewArtifact
) -> None:
    first = publish(origin, new_artifact(), aliases=["live"])
    mirror.resolve("acme/topics:live")
    second = publish(origin, new_artifact(seed=1), aliases=["live"])
    follower = Follower(mirror, retry_s=0.05)
    try:
        # Moved before it began: looked up at the beginning.
        eventually(lambda: mirror.list_alias_moves(NAME, "live")[0].digest == second.digest)
        origin.set_alias(NAME, "live", first.digest)
        eventually(lambda: mirror.list_alias_moves(NAME, "live")[0].digest == first.digest)
        upstream.stop()
        origin.set_alias(NAME, "live", second.digest)
        upstream.start()
        eventually(lambda: mirror.list_alias_moves(NAME, "live")[0].digest == second.digest)
        origin.delete_alias(NAME, "live")
        eventually(lambda: mirror.list_alias_moves(NAME, "live")[0].digest == "")
    finally:
        follower.close()


def test_a_registry_with_versions_of_its_own_becomes_no_mirror(
    registry: EmbeddedRegistry, home: Home, upstream: UpstreamServer, new_artifact: NewArtifact
) -> None:
    publish(registry, new_artifact())
    with pytest.raises(PreconditionError, match="versions of its own"):
        open_mirror(upstream, home)


def test_a_token_that_the_upstream_does_not_take_is_the_mirrors_business(
    mirror: MirrorRegistry, origin: EmbeddedRegistry, new_artifact: NewArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller must not be told that its own token is wrong; and what was taken away is not served on as merely old."""
    from weft_registry.errors import UnauthenticatedError

    publish(origin, new_artifact(), aliases=["live"])
    mirror.resolve("acme/topics:live")

    def refuse(_reference: str) -> Version:
        raise UnauthenticatedError("the token is revoked")

    monkeypatch.setattr(mirror.upstream.remote, "resolve", refuse)
    with pytest.raises(UnavailableError, match="does not take this mirror's token") as caught:
        mirror.resolve("acme/topics:live")
    assert caught.value.reason == "UPSTREAM_REFUSES"


def test_both_faces_serve_a_mirror_and_mark_what_may_be_old(
    mirror: MirrorRegistry,
    origin: EmbeddedRegistry,
    upstream: UpstreamServer,
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    directory = new_artifact()
    version = publish(origin, directory, aliases=["live"])
    with serving(mirror, StalenessInterceptor()) as target:
        remote = RemoteRegistry(target)
        port = HubPort(mirror, "127.0.0.1", 0, grace_s=0)
        try:
            assert transfer.pull(remote, "acme/topics:live", tmp_path / "grpc").digest == version.digest
            assert stale_over_grpc(target) is None
            commit = version.digest[7:47]
            fresh = ask(port.address, "/api/models/acme/topics/revision/live")
            assert (fresh.status, fresh.headers.get("x-weft-stale")) == (200, None)
            upstream.stop()
            note = stale_over_grpc(target)
            assert note is not None
            assert note.startswith("since=")
            assert remote.stale_note is None
            assert remote.resolve("acme/topics:live").digest == version.digest
            assert remote.stale_note is not None
            assert remote.stale_note.startswith("since=")
            shown = CliRunner().invoke(app, ["show", "acme/topics:live", "--registry", target])
            assert shown.exit_code == 0
            assert f"note: this may be out of date: {note.partition(';')[0]}" in shown.stderr
            assert ask(port.address, "/api/models/acme/topics").status == 200, "its main is the latest that is held"
            refused = ask(port.address, "/api/models/acme/topics/branch/new", "POST", {"Content-Length": "0"})
            assert refused.status == 422, refused
            old = ask(port.address, "/api/models/acme/topics/revision/live")
            assert old.status == 200
            assert old.headers["x-weft-stale"].startswith("since=")
            file = ask(port.address, f"/acme/topics/resolve/{commit}/{artifact.WEIGHTS}")
            assert file.body == (directory / artifact.WEIGHTS).read_bytes()
            assert "x-weft-stale" not in file.headers
        finally:
            port.close()
            remote.close()


def stale_over_grpc(target: str) -> str | None:
    with grpc.insecure_channel(target) as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        _, call = stub.Resolve.with_call(pb.ResolveRequest(reference="acme/topics:live"), timeout=60)
        said = dict(call.trailing_metadata() or ()).get("x-weft-stale")
        return None if said is None else str(said)
