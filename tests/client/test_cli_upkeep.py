"""`weft gc` and `weft registry check|backup|restore`, on an embedded registry and, where it can be, on a served one."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

from tests.registry.access.lab import asking
from weft_registry.base import BaseSpec
from weft_registry.catalog import tables
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.principal import LOCAL

Weft = Callable[..., Result]
MakePeft = Callable[..., Path]


@pytest.fixture
def pushed(weft: Weft, base: BaseSpec, peft_directory: MakePeft) -> list[str]:
    """Two versions of acme/topics, the second in production."""
    digests = []
    for seed, labels in ((1, ("--tag", "v1")), (2, ("--tag", "v2", "--alias", "production"))):
        answer = weft("push", peft_directory(seed), "acme/topics", "--base", "tiny", *labels, "--json")
        digests.append(json.loads(answer.stdout)["digest"])
    return digests


@pytest.fixture(params=["embedded", "served"])
def options(request: pytest.FixtureRequest, home: Home) -> Iterator[list[str]]:
    """What makes a command use the registry under WEFT_HOME, by itself or through a server."""
    if request.param == "embedded":
        yield []
        return
    with closing(EmbeddedRegistry(home)) as registry, asking(registry, LOCAL) as server:
        yield ["--registry", server.target]


def end_leases(home: Home) -> None:
    with closing(EmbeddedRegistry(home)) as registry, registry._catalog.write() as connection:
        connection.execute(tables.blob_leases.delete())


def blobs(home: Home) -> list[Path]:
    return [path for path in (home.registry / "blobs").rglob("*") if path.is_file()]


def test_gc_removes_what_a_deleted_version_leaves(
    weft: Weft, pushed: list[str], options: list[str], home: Home
) -> None:
    weft("delete", "acme/topics:v1", "--yes", *options)
    end_leases(home)
    there = len(blobs(home))
    assert "would remove 0 blobs" in weft("gc", "--dry-run", *options).stdout
    said = json.loads(weft("gc", "--dry-run", "--grace-period", "0s", "--json", *options).stdout)
    assert len(blobs(home)) == there
    done = json.loads(weft("gc", "--grace-period", "0s", "--json", *options).stdout)
    assert {**done, "dry_run": True} == said
    assert done["removed_blobs"] >= 1
    assert len(blobs(home)) == there - done["removed_blobs"] == done["kept_blobs"]
    assert "removed 0 blobs, 0 B" in weft("gc", "--grace-period", "0s", *options).stdout
    weft("verify", "acme/topics:production", *options)


@pytest.mark.parametrize("text", ["1", "-1s", "nan", "1 h", "h", "1y"])
def test_a_grace_that_is_no_time_is_refused(weft: Weft, text: str) -> None:
    assert "length of time" in weft("gc", f"--grace-period={text}", status=2).stderr


def test_check_finds_nothing_in_a_whole_registry_and_counts_what_nothing_needs(
    weft: Weft, pushed: list[str], options: list[str], home: Home
) -> None:
    assert weft("registry", "check", *options).stdout.startswith("checked 2 versions, ")
    weft("delete", "acme/topics:v1", "--yes", *options)
    end_leases(home)
    answer = json.loads(weft("registry", "check", "--json", *options).stdout)
    assert (answer["checked_versions"], answer["problems"]) == (1, [])
    assert answer["orphan_blobs"] >= 1
    assert "`weft gc` removes them" in weft("registry", "check", *options).stdout


def test_check_names_what_is_damaged_and_has_status_1(
    weft: Weft, pushed: list[str], options: list[str], home: Home
) -> None:
    path = max(blobs(home), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(b"")
    result = weft("registry", "check", *options, status=1)
    assert "error: 1 problems" in result.stderr
    assert "acme/topics@sha256:" in result.stderr
    assert "is corrupt" in result.stderr
    answer = json.loads(weft("registry", "check", "--json", *options, status=1).stdout)
    assert len(answer["problems"]) == 1


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_a_backup_is_restored_under_another_home(
    weft: Weft, pushed: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weft("token", "create", "ci", "--scope", "publish", "--namespace", "acme")
    place = tmp_path / name
    answer = json.loads(weft("registry", "backup", place, "--json").stdout)
    assert answer["blobs"] == answer["copied_blobs"] > 2
    if name == "backup":
        assert "0 of them, 0 B, were new" in weft("registry", "backup", place).stdout
    refused = weft("registry", "restore", place, status=1)
    assert "is not empty" in refused.stderr
    assert "--replace" in refused.stderr

    monkeypatch.setenv("WEFT_HOME", str(tmp_path / "elsewhere"))
    assert "checked 2 versions" in weft("registry", "restore", place).stdout
    assert json.loads(weft("show", "acme/topics:production", "--json").stdout)["digest"] == pushed[1]
    assert [token["name"] for token in json.loads(weft("token", "list", "--json").stdout)] == ["ci"]
    assert json.loads(weft("registry", "restore", place, "--replace", "--json").stdout)["problems"] == []


def test_a_backup_goes_to_the_back_ends_that_are_named(weft: Weft, pushed: list[str], tmp_path: Path) -> None:
    weft("registry", "backup", tmp_path / "backup")
    storage = ("--database", f"sqlite:///{tmp_path}/new.db", "--blobs", f"file://{tmp_path}/new")
    weft("registry", "restore", tmp_path / "backup", *storage)
    assert (tmp_path / "new.db").is_file()
    answer = json.loads(weft("registry", "backup", tmp_path / "again", *storage, "--json").stdout)
    assert answer["blobs"] == json.loads(weft("registry", "backup", tmp_path / "backup", "--json").stdout)["blobs"]


def test_a_place_without_a_backup_is_refused_in_one_line(weft: Weft, tmp_path: Path) -> None:
    result = weft("registry", "restore", tmp_path / "nowhere", status=1)
    assert result.stderr == f"error: {tmp_path}/nowhere: no such backup\n"
