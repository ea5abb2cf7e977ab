"""Deleting a version: refused while something needs it, and then gone with all that hangs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.registry.lab import seal, serving
from tests.registry.test_kinds_of_our_own import BOTTLENECK, fused, published, write
from weft_registry import artifact, transfer
from weft_registry.api import RegistryApi, VersionQuery
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import ForbiddenError, NotFoundError, PreconditionError
from weft_registry.manifest import Metric
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "support")


@pytest.fixture(params=["embedded", "remote"])
def either(request: pytest.FixtureRequest, registry: EmbeddedRegistry) -> Iterator[RegistryApi]:
    """The same registry, in this process and over gRPC."""
    if request.param == "embedded":
        yield registry
        return
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        yield remote


def rows(registry: EmbeddedRegistry, table: Any) -> int:
    with registry._catalog.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_a_version_goes_with_all_that_hangs_on_it_and_nothing_else(
    either: RegistryApi, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    first = new_artifact(seed=1)
    seal(first, metrics=[Metric("loss", "1.5", "sha256:" + "1" * 64, "eval")])
    old = transfer.push(registry, first, NAME, tags=["v1", "v1.0"], aliases=["production"]).version
    new = transfer.push(registry, new_artifact(seed=2), NAME, tags=["v2"], aliases=["production"]).version
    deleted = either.delete_version(f"{NAME}:v1")
    assert deleted.digest == old.digest
    for reference in (f"{NAME}:v1", f"{NAME}:v1.0", f"{NAME}@{old.digest}"):
        with pytest.raises(NotFoundError):
            either.resolve(reference)
    assert registry.list_versions(NAME, include_yanked=True) == [registry.resolve(f"{NAME}:v2")]
    assert registry.verify(f"{NAME}:v2").problems == ()
    assert (rows(registry, t.versions), rows(registry, t.tags)) == (1, 1)
    assert (rows(registry, t.version_metrics), rows(registry, t.publishes)) == (0, 1)
    assert rows(registry, t.version_files) == len(new.manifest.files)
    # Histories keep the digest; the alias names what it named.
    assert [move.previous_digest for move in registry.list_alias_moves(NAME, "production")] == [old.digest, ""]
    assert either.resolve(f"{NAME}:production").digest == new.digest
    # The tag is free again, and so is the content.
    again = transfer.push(registry, first, NAME, tags=["v1"])
    assert (again.existing, again.version.digest) == (False, old.digest)


def test_only_bytes_that_no_other_version_has_are_freed(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    one, two = (transfer.push(registry, new_artifact(seed=seed), NAME).version for seed in (1, 2))
    shared = {file.sha256 for file in one.manifest.files} & {file.sha256 for file in two.manifest.files}
    own = sum(file.size for file in one.manifest.files if file.sha256 not in shared)
    assert shared
    assert own
    assert registry.delete_version(f"{NAME}@{one.digest}").freed_bytes == own
    assert registry.delete_version(f"{NAME}@{two.digest}").freed_bytes == two.size_bytes


def test_a_version_that_aliases_name_is_refused_with_all_of_them(
    either: RegistryApi, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    version = transfer.push(registry, new_artifact(), NAME, tags=["v1"], aliases=["production", "canary"]).version
    for act, verb in ((either.delete_version, "deleted"), (either.yank, "yanked")):
        with pytest.raises(PreconditionError, match=f"cannot be {verb}: the aliases 'canary', 'production'") as caught:
            act(f"{NAME}:v1")
        assert caught.value.reason == "ALIAS_POINTS_HERE"
        assert caught.value.metadata == {"aliases": "canary,production", "digest": version.digest}
    assert registry.resolve(f"{NAME}:v1") == version


def test_latest_moves_back_and_goes_with_the_last_version(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    digests = [transfer.push(registry, new_artifact(seed=seed), NAME).version.digest for seed in range(3)]
    registry.yank(f"{NAME}@{digests[1]}")
    registry.delete_version(str(NAME))
    assert registry.resolve(str(NAME)).digest == digests[0]
    registry.delete_version(str(NAME))
    registry.delete_version(f"{NAME}@{digests[1]}")
    with pytest.raises(NotFoundError, match="latest"):
        registry.resolve(str(NAME))
    # Of an adapter without versions only the history is left.
    assert registry.list_adapters() == []
    assert registry.list_alias_moves(NAME)[0].digest == ""


def test_a_part_stays_while_what_is_made_of_it_does(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    one = published(registry, write(tmp_path / "one", "bottleneck", BOTTLENECK, 1), "team/one")
    two = published(registry, write(tmp_path / "two", "bottleneck", BOTTLENECK, 2), "team/two")
    other = published(registry, write(tmp_path / "other", "bottleneck", BOTTLENECK, 3), "team/other")
    whole = published(registry, write(tmp_path / "fused", "fusion", fused((one, two))), "private/whole")
    with pytest.raises(PreconditionError, match=str(whole)) as caught:
        registry.delete_version(str(one))
    assert (caught.value.reason, caught.value.metadata["wholes"]) == ("PART_OF_ANOTHER", str(whole))
    keeper = registry.acting_as(Principal("keeper", frozenset({Scope.READ, Scope.PUBLISH}), frozenset({"team"})))
    # Whoever may not read it learns that it is in the way, and not what it is.
    with pytest.raises(PreconditionError, match="what another namespace published") as caught:
        keeper.delete_version(str(two))
    assert "private" not in caught.value.message
    # Yanked, it still reads its parts.
    registry.yank(str(whole))
    with pytest.raises(PreconditionError, match=str(whole)):
        registry.delete_version(str(one))
    registry.delete_version(str(other))
    registry.delete_version(str(whole))
    registry.delete_version(str(one))
    assert [str(summary.adapter) for summary in registry.list_adapters()] == ["team/two"]


def test_a_parent_may_go_and_its_children_still_name_it(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    parent = transfer.push(registry, new_artifact(seed=1), NAME, tags=["v1"]).version
    directory = new_artifact(seed=2)
    seal(directory, provenance={"parent_version": parent.digest})
    child = transfer.push(registry, directory, NAME).version
    registry.delete_version(f"{NAME}:v1")
    query = VersionQuery(parent_digest=parent.digest)
    assert registry.search_versions(query) == [registry.resolve(str(NAME))]
    assert child.parent_digest == parent.digest


def test_deleting_takes_the_scope_and_is_in_the_audit_log(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    version = transfer.push(registry, new_artifact(), NAME, tags=["v1"]).version
    reader = registry.acting_as(Principal("reader", frozenset({Scope.READ}), frozenset({"team"})))
    stranger = registry.acting_as(Principal("stranger", frozenset(Scope), frozenset({"elsewhere"})))
    with pytest.raises(ForbiddenError):
        reader.delete_version(f"{NAME}:v1")
    with pytest.raises(NotFoundError, match="no adapter"):
        stranger.delete_version(f"{NAME}:v1")
    assert artifact.WEIGHTS in {file.path for file in registry.resolve(f"{NAME}:v1").manifest.files}
    registry.delete_version(f"{NAME}:v1")
    a = t.audit.c
    with registry._catalog.read() as connection:
        statement = sa.select(a.actor, a.namespace, a.subject).where(a.action == "delete")
        assert connection.execute(statement).all() == [("local", "team", f"{NAME}@{version.digest}")]
