"""A check of the whole registry: it finds every kind of damage, names what is concerned, and finds nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.backends.fresh import only_on_disk
from tests.registry.lab import add_base, upload_all
from tests.registry.test_kinds_of_our_own import BOTTLENECK, fused, published, write
from weft_registry import artifact, transfer
from weft_registry import parts as parts_module
from weft_registry.admin_api import CheckProgress
from weft_registry.api import Version
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import NotFoundError, UnauthenticatedError
from weft_registry.home import Home
from weft_registry.principal import NOBODY
from weft_registry.reference import AdapterName

NAME, OTHER = AdapterName("team", "support"), AdapterName("team", "sales")


def outcome(registry: EmbeddedRegistry) -> CheckProgress:
    steps = list(registry.check())
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    return steps[-1]


def digest_of(version: Version, path: str) -> str:
    return next(file.sha256 for file in version.manifest.files if file.path == path)


@pytest.fixture
def versions(registry: EmbeddedRegistry, new_artifact: Callable[..., Path]) -> list[Version]:
    """Three versions; the first two share all but the card, the third is of another adapter."""
    first, second = new_artifact(seed=1), new_artifact(seed=1, readme="Another card.\n")
    third = new_artifact(seed=2)
    return [
        transfer.push(registry, first, NAME, tags=["v1"], aliases=["production"]).version,
        transfer.push(registry, second, NAME, tags=["v2"]).version,
        transfer.push(registry, third, OTHER, tags=["v1"]).version,
    ]


def test_a_whole_registry_has_no_problems_and_every_blob_is_read_once(
    registry: EmbeddedRegistry, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, read = registry.blobs.verify, list[str]()

    def verify(digest: str) -> int:
        read.append(digest)
        return real(digest)

    monkeypatch.setattr(registry.blobs, "verify", verify)
    found = outcome(registry)
    sizes = {file.sha256: file.size for version in versions for file in version.manifest.files}
    assert (found.problems, found.checked_versions, found.total_versions) == ((), 3, 3)
    assert found.checked_bytes == sum(sizes.values())
    assert sorted(read) == sorted(sizes)


def test_an_empty_registry_is_whole(registry: EmbeddedRegistry) -> None:
    assert outcome(registry) == CheckProgress(0, 0, 0, (), done=True)


def test_a_yanked_version_is_checked_too(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    third = versions[2]
    registry.yank(f"{OTHER}:v1")
    registry.blobs.delete_blobs([digest_of(third, artifact.WEIGHTS)])
    (problem,) = outcome(registry).problems
    assert f"{OTHER}@{third.digest} {artifact.WEIGHTS}: no blob" in problem


def test_a_missing_blob_names_every_version_that_has_it(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    digest = digest_of(versions[0], artifact.WEIGHTS)
    registry.blobs.delete_blobs([digest])
    (problem,) = outcome(registry).problems
    assert all(f"{NAME}@{version.digest} {artifact.WEIGHTS}" in problem for version in versions[:2])
    assert versions[2].digest not in problem
    assert f"no blob {digest}" in problem


@only_on_disk
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_blob_is_found(damage: str, registry: EmbeddedRegistry, versions: list[Version], home: Home) -> None:
    digest = digest_of(versions[2], artifact.WEIGHTS)
    path = home.registry / "blobs" / "sha256" / digest[7:9] / digest[7:]
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if damage == "flipped" else data[:-1])
    (problem,) = outcome(registry).problems
    assert f"{OTHER}@{versions[2].digest} {artifact.WEIGHTS}: blob {digest} is corrupt" in problem


def test_a_changed_manifest_is_found(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    v = t.versions.c
    with registry._catalog.write() as connection:
        here = v.digest == versions[0].digest
        connection.execute(t.versions.update().where(here).values(manifest=versions[1].manifest_bytes))
    (problem,) = outcome(registry).problems
    assert problem.startswith(f"{NAME}@{versions[0].digest}: the stored manifest has the digest {versions[1].digest}")


def test_files_that_the_catalog_does_not_list_are_found(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    # Collection asks this list, and would remove the blob.
    f = t.version_files.c
    with registry._catalog.write() as connection:
        connection.execute(t.version_files.delete().where(f.sha256 == digest_of(versions[2], artifact.WEIGHTS)))
    (problem,) = outcome(registry).problems
    assert f"{OTHER}@{versions[2].digest}: the catalog and the manifest differ about the file" in problem
    assert artifact.WEIGHTS in problem


def test_a_size_that_is_not_the_blobs_is_found(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    f = t.version_files.c
    digest = digest_of(versions[2], artifact.WEIGHTS)
    with registry._catalog.write() as connection:
        connection.execute(t.version_files.update().where(f.sha256 == digest).values(size_bytes=1))
    assert any("and the catalog says 1" in problem for problem in outcome(registry).problems)


@pytest.mark.parametrize(("table", "label"), [(t.tags, "v1"), (t.aliases, "production")])
def test_a_name_of_another_adapters_version_is_found(
    table: sa.Table, label: str, registry: EmbeddedRegistry, versions: list[Version]
) -> None:
    with registry._catalog.write() as connection:
        v, a = t.versions.c, t.adapters.c
        adapter = connection.execute(sa.select(a.id).where(a.name == NAME.name)).scalar_one()
        foreign = connection.execute(sa.select(v.id).where(v.digest == versions[2].digest)).scalar_one()
        column = table.columns["tag" if table is t.tags else "alias"]
        here = sa.and_(table.c.adapter_id == adapter, column == label)
        assert connection.execute(table.update().where(here).values(version_id=foreign)).rowcount == 1
    assert outcome(registry).problems == (f"{NAME}:{label} names {versions[2].digest}, a version of another adapter",)


def test_an_alias_of_a_yanked_version_is_found(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    with registry._catalog.write() as connection:
        connection.execute(t.versions.update().where(t.versions.c.digest == versions[0].digest).values(yanked=True))
    assert outcome(registry).problems == (f"{NAME}:production names {versions[0].digest}, which is yanked",)


def test_a_branchs_missing_file_is_found(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    digest = "sha256:" + "7" * 64
    with registry._catalog.write() as connection:
        adapter = connection.execute(sa.select(t.adapters.c.id).where(t.adapters.c.name == NAME.name)).scalar_one()
        key = {"adapter_id": adapter, "branch": "work"}
        connection.execute(t.branches.insert().values(**key, head="0" * 40, updated_at_us=0))
        connection.execute(t.branch_files.insert().values(**key, path="README.md", sha256=digest, size_bytes=1))
    assert outcome(registry).problems == (f"{NAME}, branch work, README.md: no blob {digest}",)


def test_a_missing_part_is_found(registry: EmbeddedRegistry, home: Home, tmp_path: Path) -> None:
    add_base(home)
    made = [write(tmp_path / f"part{seed}", "bottleneck", BOTTLENECK, seed) for seed in range(2)]
    parts = tuple(published(registry, directory, f"team/part{i}") for i, directory in enumerate(made))
    whole = published(registry, write(tmp_path / "fusion", "fusion", fused(parts)), "team/fusion")
    assert outcome(registry).problems == ()
    with registry._catalog.write() as connection:
        v = t.versions.c
        part_id = connection.execute(sa.select(v.id).where(v.digest == parts[0].digest)).scalar_one()
        for table in (t.version_files, t.version_metrics, t.tags, t.aliases, t.publishes):
            connection.execute(table.delete().where(table.c.version_id == part_id))
        connection.execute(t.versions.delete().where(v.id == part_id))
    assert outcome(registry).problems == (f"{whole}: its part {parts[0]} is not in this registry",)


def test_a_fusion_whose_part_is_deleted_while_it_is_published_is_refused(
    registry: EmbeddedRegistry, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_base(home)
    made = [write(tmp_path / f"part{seed}", "bottleneck", BOTTLENECK, seed) for seed in range(2)]
    parts = tuple(published(registry, directory, f"team/part{i}") for i, directory in enumerate(made))
    manifest = upload_all(registry, write(tmp_path / "fusion", "fusion", fused(parts)))
    real = parts_module.resolve_parts

    def resolve(*arguments: Any) -> list[Version]:
        found = real(*arguments)
        monkeypatch.undo()
        registry.delete_version(str(parts[0]))
        return found

    monkeypatch.setattr(parts_module, "resolve_parts", resolve)
    with pytest.raises(NotFoundError, match="push it first") as refused:
        registry.publish(AdapterName("team", "fusion"), manifest)
    assert refused.value.reason == "PART_NOT_FOUND"
    assert outcome(registry).problems == ()
    assert [str(summary.adapter) for summary in registry.list_adapters() if summary.version_count] == ["team/part1"]


@only_on_disk
def test_rows_that_refer_to_nothing_are_found(registry: EmbeddedRegistry, versions: list[Version]) -> None:
    with closing(sqlite3.connect(registry._catalog.where)) as connection:
        connection.execute("INSERT INTO tags VALUES (1, 'lost', 999)")
        connection.commit()
    problems = outcome(registry).problems
    assert any("row" in problem and "of tags" in problem for problem in problems)
    assert f"{NAME}:lost names a version that is not there" in problems


def test_a_version_that_is_deleted_and_collected_meanwhile_is_no_problem(
    registry: EmbeddedRegistry, new_artifact: Callable[..., Path]
) -> None:
    version = transfer.push(registry, new_artifact(seed=1), NAME).version
    transfer.push(registry, new_artifact(seed=2), NAME)
    steps = registry.check()
    next(steps)
    registry.delete_version(f"{NAME}@{version.digest}")
    registry.blobs.delete_blobs([file.sha256 for file in version.manifest.files if file.path == artifact.WEIGHTS])
    assert list(steps)[-1].problems == ()


def test_only_administrators_check_the_whole(registry: EmbeddedRegistry) -> None:
    with pytest.raises(UnauthenticatedError):
        registry.acting_as(NOBODY).check()
