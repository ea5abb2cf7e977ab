"""Aliases: moves by compare-and-swap, moves taken back, who may move them, and following them without a gap."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.registry.lab import python, serving
from weft_registry import transfer
from weft_registry.admin_api import ProtectedAlias
from weft_registry.api import AliasMove, AliasNews, AliasWatch, RegistryApi
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    ConflictError,
    ExhaustedError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    OffsetError,
    PreconditionError,
    UnavailableError,
)
from weft_registry.home import Home
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.serve import alias_calls
from weft_registry.serve.options import RegistryServeOptions
from weft_registry.serve.serving import running

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "support")
OTHER = AdapterName("other", "private")


@pytest.fixture
def digests(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> list[str]:
    """Three versions, v0 to v2; no alias but latest."""
    return [
        transfer.push(registry, new_artifact(seed=seed), NAME, tags=[f"v{seed}"]).version.digest for seed in range(3)
    ]


@pytest.fixture(params=["embedded", "remote"])
def either(request: pytest.FixtureRequest, registry: EmbeddedRegistry) -> Iterator[RegistryApi]:
    """The same registry, in this process and over gRPC."""
    if request.param == "embedded":
        yield registry
        return
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        yield remote


def token(name: str, *scopes: Scope, namespaces: tuple[str, ...] = ("team",)) -> Principal:
    return Principal(name, frozenset({Scope.READ, *scopes}), frozenset(namespaces))


def audit(home: Home, registry: EmbeddedRegistry) -> list[tuple[str, str, str]]:
    a = t.audit.c
    with registry._catalog.read() as connection:
        rows = connection.execute(
            sa.select(a.action, a.subject, a.actor).where(a.action.like("alias.%")).order_by(a.id)
        )
        return [(row.action, row.subject, row.actor) for row in rows]


def move_of(watch: AliasWatch) -> AliasMove:
    """The next move, however often the watch says that nothing happened."""
    return next(news.move for news in watch if news.move is not None)


def test_an_alias_is_removed_by_compare_and_swap(either: RegistryApi, digests: list[str]) -> None:
    set_ = either.set_alias(NAME, "production", "v1")
    with pytest.raises(ConflictError) as caught:
        either.delete_alias(NAME, "production", "stale")
    assert caught.value.metadata["etag"] == set_.etag
    assert either.delete_alias(NAME, "production", set_.etag) == digests[1]
    with pytest.raises(NotFoundError, match="no tag or alias"):
        either.resolve(f"{NAME}:production")
    with pytest.raises(NotFoundError, match="no alias"):
        either.delete_alias(NAME, "production")
    # The history goes on over the gap.
    either.set_alias(NAME, "production", "v0", "none")
    moves = either.list_alias_moves(NAME, "production")
    assert [(move.previous_digest, move.digest) for move in moves] == [
        ("", digests[0]),
        (digests[1], ""),
        ("", digests[1]),
    ]


def test_latest_is_never_removed(either: RegistryApi, digests: list[str]) -> None:
    with pytest.raises(PreconditionError, match="cannot be removed"):
        either.delete_alias(NAME, "latest")
    assert either.resolve(str(NAME)).digest == digests[2]


def test_a_tag_is_neither_removed_nor_taken_back_as_an_alias(either: RegistryApi, digests: list[str]) -> None:
    for act in (either.delete_alias, either.rollback_alias):
        with pytest.raises(NotFoundError, match="it is a tag"):
            act(NAME, "v1")
    assert either.resolve(f"{NAME}:v1").digest == digests[1]


def test_a_rollback_goes_to_what_was_named_before_the_last_move(either: RegistryApi, digests: list[str]) -> None:
    for version in ("v0", "v1", "v2"):
        either.set_alias(NAME, "production", version)
    back = either.rollback_alias(NAME, "production")
    assert (back.digest, back.previous_digest) == (digests[1], digests[2])
    assert either.resolve(f"{NAME}:production").digest == digests[1]
    # A move like any other: taking it back goes forward.
    assert either.rollback_alias(NAME, "production", back.etag).digest == digests[2]
    # Moves, newest first: 1->2, 2->1, 1->2, 0->1, ->0.
    assert either.rollback_alias(NAME, "production", steps=4).digest == digests[0]


def test_a_rollback_by_compare_and_swap_loses_to_a_move(either: RegistryApi, digests: list[str]) -> None:
    first = either.set_alias(NAME, "production", "v0")
    second = either.set_alias(NAME, "production", "v1")
    with pytest.raises(ConflictError) as caught:
        either.rollback_alias(NAME, "production", first.etag)
    assert caught.value.metadata == {"alias": "production", "etag": second.etag, "digest": digests[1]}


def test_a_rollback_never_goes_to_what_is_yanked_deleted_or_nothing(either: RegistryApi, digests: list[str]) -> None:
    either.set_alias(NAME, "production", "v0")
    with pytest.raises(PreconditionError, match="it named nothing") as caught:
        either.rollback_alias(NAME, "production")
    assert caught.value.reason == "NO_SUCH_MOVE"
    either.set_alias(NAME, "production", "v1")
    either.yank(f"{NAME}:v0")
    with pytest.raises(PreconditionError, match=f"{digests[0]}, which is yanked"):
        either.rollback_alias(NAME, "production")
    either.delete_version(f"{NAME}@{digests[0]}")
    with pytest.raises(PreconditionError, match=f"{digests[0]}, which was deleted"):
        either.rollback_alias(NAME, "production")
    with pytest.raises(PreconditionError, match="it named nothing"):
        either.rollback_alias(NAME, "production", steps=7)
    with pytest.raises(InvalidInputError, match="steps"):
        either.rollback_alias(NAME, "production", steps=-1)
    assert either.resolve(f"{NAME}:production").digest == digests[1]


def test_a_rollback_to_where_it_is_says_so(registry: EmbeddedRegistry, digests: list[str]) -> None:
    for version in ("v0", "v1", "v0"):
        registry.set_alias(NAME, "production", version)
    with pytest.raises(PreconditionError, match="the same version"):
        registry.rollback_alias(NAME, "production", steps=2)


def test_the_history_comes_in_pages_and_whole(
    registry: EmbeddedRegistry, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(9):
        registry.set_alias(NAME, "production", f"v{i % 3}")
    everything = registry.list_alias_moves(NAME)
    assert len(everything) == 12
    assert [move.sequence for move in everything] == sorted((move.sequence for move in everything), reverse=True)
    assert {move.alias for move in everything} == {"latest", "production"}
    assert {move.actor for move in everything} == {"local"}
    monkeypatch.setattr("weft_registry.remote.aliases._PAGE", 5)
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        assert remote.list_alias_moves(NAME) == everything
        assert (
            remote.list_alias_moves(NAME, "production", limit=7)
            == [move for move in everything if move.alias == "production"][:7]
        )
    with pytest.raises(NotFoundError):
        registry.list_alias_moves(AdapterName("team", "nothing"))


def test_every_change_of_an_alias_is_in_the_audit_log(
    home: Home, registry: EmbeddedRegistry, digests: list[str]
) -> None:
    acting = registry.acting_as(token("ci", Scope.ALIAS))
    acting.set_alias(NAME, "production", "v0")
    acting.set_alias(NAME, "production", "v1")
    acting.set_alias(NAME, "production", "v1")  # Where it is: no move, and no line.
    acting.rollback_alias(NAME, "production")
    acting.delete_alias(NAME, "production")
    subject = f"{NAME}:production"
    assert audit(home, registry) == [
        ("alias.move", subject, "ci"),
        ("alias.move", subject, "ci"),
        ("alias.rollback", subject, "ci"),
        ("alias.remove", subject, "ci"),
    ]
    assert {move.actor for move in registry.list_alias_moves(NAME, "production")} == {"ci"}


def test_only_administrators_and_named_tokens_move_a_protected_alias(
    registry: EmbeddedRegistry, digests: list[str], new_artifact: NewArtifact
) -> None:
    release, ci = (registry.acting_as(token(name, Scope.ALIAS, Scope.PUBLISH)) for name in ("release", "ci"))
    boss = registry.acting_as(token("boss", Scope.ADMIN))
    ci.set_alias(NAME, "production", "v0")
    assert boss.protect_alias("team", "support", "production", ["release"]) == ProtectedAlias(
        "team", "support", "production", ("release",)
    )
    artifact = new_artifact(seed=7)
    for act in (
        lambda: ci.set_alias(NAME, "production", "v1"),
        lambda: ci.rollback_alias(NAME, "production"),
        lambda: ci.delete_alias(NAME, "production"),
        lambda: transfer.push(ci, artifact, NAME, aliases=["production"]),
    ):
        with pytest.raises(ForbiddenError, match="protected") as caught:
            act()
        assert caught.value.reason == "ALIAS_PROTECTED"
    # Refused before anything was published.
    assert len(registry.list_versions(NAME)) == 3
    assert release.set_alias(NAME, "production", "v1").protected
    assert boss.set_alias(NAME, "production", "v2").digest == digests[2]
    assert not ci.set_alias(NAME, "canary", "v1").protected
    boss.unprotect_alias("team", "support", "production")
    assert not ci.set_alias(NAME, "production", "v0").protected
    with pytest.raises(NotFoundError, match="not protected"):
        boss.unprotect_alias("team", "support", "production")


def test_a_protection_of_the_namespace_holds_in_every_adapter_that_has_no_own(
    registry: EmbeddedRegistry, digests: list[str], new_artifact: NewArtifact
) -> None:
    second = AdapterName("team", "second")
    transfer.push(registry, new_artifact(seed=1), second, tags=["v1"])
    registry.protect_alias("team", "", "production", [])
    registry.protect_alias("team", "second", "production", ["ci"])
    ci = registry.acting_as(token("ci", Scope.ALIAS))
    with pytest.raises(ForbiddenError):
        ci.set_alias(NAME, "production", "v1")
    assert ci.set_alias(second, "production", "v1").protected
    assert registry.protected_aliases("team") == [
        ProtectedAlias("team", "", "production", ()),
        ProtectedAlias("team", "second", "production", ("ci",)),
    ]
    assert registry.protected_aliases("other") == []
    # Said anew, not beside what was said before.
    registry.protect_alias("team", "second", "production", ["release"])
    assert registry.protected_aliases()[1].token_names == ("release",)


def test_protection_is_for_administrators_and_never_of_latest(registry: EmbeddedRegistry, digests: list[str]) -> None:
    with pytest.raises(PreconditionError, match="cannot be protected"):
        registry.protect_alias("team", "", "latest", [])
    for arguments in (("team", "", "../x", []), ("Team", "", "x", []), ("team", "", "x", ["a\0"])):
        with pytest.raises(InvalidInputError):
            registry.protect_alias(*arguments)
    ci = registry.acting_as(token("ci", Scope.ALIAS, Scope.PUBLISH))
    stranger = registry.acting_as(token("stranger", Scope.ADMIN, namespaces=("elsewhere",)))
    for acting in (ci, stranger):
        with pytest.raises(ForbiddenError):
            acting.protect_alias("team", "", "production", ["ci"])
        with pytest.raises(ForbiddenError):
            acting.unprotect_alias("team", "", "production")
        with pytest.raises(ForbiddenError):
            acting.protected_aliases("team")
    registry.protect_alias("team", "", "production", [])
    assert stranger.protected_aliases() == []


def test_without_the_scope_no_alias_moves_and_without_reading_there_is_none(
    registry: EmbeddedRegistry, digests: list[str]
) -> None:
    registry.set_alias(NAME, "production", "v0")
    reader = registry.acting_as(token("reader"))
    stranger = registry.acting_as(token("stranger", Scope.ALIAS, Scope.PUBLISH, namespaces=("elsewhere",)))
    for act in ("set_alias", "delete_alias", "rollback_alias"):
        arguments = (NAME, "production", "v1") if act == "set_alias" else (NAME, "production")
        with pytest.raises(ForbiddenError):
            getattr(reader, act)(*arguments)
        with pytest.raises(NotFoundError, match="no adapter"):
            getattr(stranger, act)(*arguments)
    assert reader.list_alias_moves(NAME, "production")
    with pytest.raises(NotFoundError, match="no adapter"):
        stranger.list_alias_moves(NAME)


def test_a_watch_says_at_once_where_it_stands_and_then_every_move_once(
    either: RegistryApi, registry: EmbeddedRegistry, digests: list[str]
) -> None:
    with closing(either.watch_aliases([NAME])) as watch:
        begun = next(watch)
        assert begun.move is None
        assert begun.sequence == registry.list_alias_moves(NAME)[0].sequence
        registry.set_alias(NAME, "production", "v0")
        first = move_of(watch)
        assert (first.adapter, first.alias, first.digest) == (NAME, "production", digests[0])
        registry.set_alias(NAME, "production", "v1")
        registry.delete_alias(NAME, "production")
        assert [move_of(watch).digest for _ in range(2)] == [digests[1], ""]
    # What happened while nobody watched is said to whoever goes on where this one stood.
    registry.set_alias(NAME, "canary", "v2")
    with closing(either.watch_aliases([NAME], after=first.sequence)) as watch:
        assert [move_of(watch).digest for _ in range(3)] == [digests[1], "", digests[2]]
    # Closed is over.
    assert list(watch) == []


def test_a_watch_from_the_beginning_of_an_empty_registry_misses_nothing(
    either: RegistryApi, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    with closing(either.watch_aliases()) as watch:
        begun = next(watch)
        assert begun == AliasNews(-1)
    published = transfer.push(registry, new_artifact(), NAME)
    with closing(either.watch_aliases(after=begun.sequence)) as watch:
        move = move_of(watch)
        assert (move.alias, move.digest) == ("latest", published.version.digest)


def test_a_sequence_that_a_registry_has_not_come_to_is_refused(either: RegistryApi, digests: list[str]) -> None:
    for after, error in ((1 << 40, OffsetError), (-2, InvalidInputError)):
        with pytest.raises(error):
            next(either.watch_aliases(after=after))


def test_a_watch_shows_only_what_was_asked_for_and_may_be_read(
    registry: EmbeddedRegistry, digests: list[str], new_artifact: NewArtifact
) -> None:
    transfer.push(registry, new_artifact(seed=5), OTHER, tags=["v0"])
    reader = registry.acting_as(token("reader"))
    # What others move is not even counted.
    assert next(reader.watch_aliases()).sequence == registry.list_alias_moves(NAME)[0].sequence
    assert next(registry.watch_aliases()).sequence == registry.list_alias_moves(OTHER)[0].sequence
    everything, asked = reader.watch_aliases(after=-1), reader.watch_aliases([OTHER, AdapterName("team", "nothing")])
    assert next(asked).move is None
    registry.set_alias(OTHER, "production", "v0")
    registry.set_alias(NAME, "production", "v0")
    found = [move_of(everything) for _ in range(4)]
    assert {move.adapter for move in found} == {NAME}
    assert found[-1].alias == "production"
    assert asked._cursor.read() == []


def test_nothing_moving_is_said_now_and_then(registry: EmbeddedRegistry, digests: list[str]) -> None:
    watch = registry.watch_aliases([NAME], heartbeat_s=0.0)
    begun = next(watch)
    assert [next(watch) for _ in range(3)] == [begun] * 3


def test_more_moves_than_are_read_at_once_come_in_order_and_whole(
    registry: EmbeddedRegistry, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_registry.catalog.alias_feed._AT_ONCE", 2)
    for i in range(7):
        registry.set_alias(NAME, "production", f"v{i % 3}")
    watch = registry.watch_aliases(after=-1)
    found = [move_of(watch) for _ in range(10)]
    assert found == registry.list_alias_moves(NAME)[::-1]


def test_a_watch_sees_what_another_process_moves(home: Home, registry: EmbeddedRegistry, digests: list[str]) -> None:
    script = (
        "from weft_registry.embedded import EmbeddedRegistry\n"
        "from weft_registry.home import Home\n"
        "from weft_registry.reference import AdapterName\n"
        "registry = EmbeddedRegistry(Home.from_environment())\n"
        "registry.set_alias(AdapterName('team', 'support'), 'production', 'v1')\n"
    )
    watch = registry.watch_aliases([NAME])
    next(watch)
    process = python(script, home=home)
    assert move_of(watch).digest == digests[1]
    assert process.communicate(timeout=60)[1] == ""


def test_a_remote_watch_goes_on_by_itself_where_the_registry_went_away(
    registry: EmbeddedRegistry, digests: list[str]
) -> None:
    with serving(registry) as target:
        remote = RemoteRegistry(target)
        watch = remote.watch_aliases([NAME], patience_s=0.0)
        begun = next(watch)
    registry.set_alias(NAME, "production", "v0")
    with pytest.raises(UnavailableError):
        next(watch)
    port = int(target.rpartition(":")[2])
    with serving(registry, port=port):
        watch._patience_s = 60.0
        registry.set_alias(NAME, "production", "v1")
        found = [move_of(watch) for _ in range(2)]
        assert [move.digest for move in found] == digests[:2]
        assert found[0].sequence == begun.sequence + 1
        remote.close()
        assert list(watch) == []


def test_a_remote_watch_ends_in_another_thread(registry: EmbeddedRegistry, digests: list[str]) -> None:
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        watch = remote.watch_aliases([NAME])
        next(watch)
        found: list[AliasNews] = []
        thread = threading.Thread(target=lambda: found.extend(watch))
        thread.start()
        watch.close()
        thread.join(20)
        assert not thread.is_alive()
        assert found == []


def test_a_registry_that_says_nothing_is_not_there(registry: EmbeddedRegistry, digests: list[str]) -> None:
    """Whatever the connection looks like: heartbeats would have come."""
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        watch = remote.watch_aliases([NAME], patience_s=0.0)
        watch._silence_s = 0.2
        next(watch)
        with pytest.raises(UnavailableError, match="said nothing"):
            next(watch)


def test_watches_are_bounded_and_their_places_come_back(
    registry: EmbeddedRegistry, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias_calls, "MAX_WATCHES", 1)
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        first, second = remote.watch_aliases(), remote.watch_aliases()
        next(first)
        with pytest.raises(ExhaustedError) as caught:
            next(second)
        assert caught.value.retry_after_s
        first.close()
        while True:  # Until the server has heard of it.
            try:
                assert next(remote.watch_aliases()).move is None
            except ExhaustedError:
                continue
            break


def test_a_watch_is_begun_anew_now_and_then_without_a_gap(
    registry: EmbeddedRegistry, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a token that was revoked stops to hear of moves."""
    monkeypatch.setattr(alias_calls, "MAX_WATCH_S", 0.0)
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        watch = remote.watch_aliases(after=-1)
        assert [move_of(watch).digest for _ in range(3)] == digests


ROLL = """
import json, sys
from weft_registry.errors import ConflictError, PreconditionError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import open_registry

registry = open_registry(Home.from_environment(), sys.argv[1] or None)
name, wins = AdapterName("team", "support"), 0
etag = sys.argv[2]
for turn in range(12):
    try:
        if turn % 3:
            alias = registry.set_alias(name, "production", f"v{turn % 3}", etag)
        else:
            alias = registry.rollback_alias(name, "production", etag)
    except ConflictError as error:
        etag = error.metadata["etag"]
    else:
        wins += alias.etag != etag
        etag = alias.etag
registry.close()
print(json.dumps(wins))
"""


@pytest.mark.parametrize("where", ["embedded", "served"])
def test_eight_processes_moving_and_rolling_back_one_alias_lose_no_update(
    where: str, home: Home, registry: EmbeddedRegistry, digests: list[str]
) -> None:
    registry.set_alias(NAME, "production", "v0")
    etag = registry.set_alias(NAME, "production", "v1").etag
    with serving(registry) as target:
        address = target if where == "served" else ""
        processes = [python(ROLL, address, etag, home=home) for _ in range(8)]
        wins = 0
        for process in processes:
            out, errors = process.communicate(timeout=170)
            assert (process.returncode, errors) == (0, "")
            wins += json.loads(out)
    history = registry.list_alias_moves(NAME, "production", 1000)[::-1]
    # Every win is one move, and every move began where the one before it ended.
    assert len(history) == wins + 2
    assert [move.previous_digest for move in history] == ["", *(move.digest for move in history[:-1])]
    assert wins >= 12


def test_a_server_that_stops_does_not_wait_for_those_who_watch(home: Home) -> None:
    async def stops() -> None:
        options = RegistryServeOptions(port=0, http_port=0, grace_s=3600.0, home=home)
        async with asyncio.timeout(60), running(options) as server:
            remote = RemoteRegistry(server.address)
            stack.callback(remote.close)
            await asyncio.to_thread(next, remote.watch_aliases())

    with ExitStack() as stack:
        asyncio.run(stops())
