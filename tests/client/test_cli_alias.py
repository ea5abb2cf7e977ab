"""`weft alias`, `weft delete`: the whole life of an alias, embedded and over the wire."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.registry.lab import serving
from weft_registry.base import BaseSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home

Weft = Callable[..., Result]
MakePeft = Callable[..., Path]
NAME = "acme/topics"


@pytest.fixture
def digests(weft: Weft, base: BaseSpec, peft_directory: MakePeft) -> list[str]:
    """v0 to v2 of acme/topics; production went from one to the next."""
    found = []
    for seed in range(3):
        answer = weft("push", peft_directory(seed), NAME, "--base", "tiny", "--tag", f"v{seed}", "--json")
        found.append(json.loads(answer.stdout)["digest"])
        weft("alias", "set", NAME, "production", f"v{seed}")
    return found


def said(answer: Result) -> Any:
    return json.loads(answer.stdout)


def test_the_short_spelling_sets_an_alias_with_its_options_on_either_side(weft: Weft, digests: list[str]) -> None:
    moved = said(weft("alias", NAME, "canary", "v1", "--json"))
    assert (moved["digest"], moved["adapter"], moved["protected"]) == (digests[1], NAME, False)
    again = said(weft("alias", "--json", "--expect", moved["etag"], NAME, "canary", "v2"))
    assert again == said(weft("alias", "set", NAME, "canary", "v2", "--json"))
    assert "No such command" in weft("alias", "rollbak", "acme", "production", status=2).stderr
    assert "rollback" in weft("alias", "--help").stdout


def test_a_move_is_taken_back_and_the_history_says_so(weft: Weft, digests: list[str]) -> None:
    back = said(weft("alias", "rollback", NAME, "production", "--json"))
    assert (back["digest"], back["previous_digest"]) == (digests[1], digests[2])
    assert digests[0] in weft("alias", "rollback", NAME, "production", "--steps", "3").stdout
    history = said(weft("alias", "history", NAME, "production", "--json"))
    assert [move["digest"] for move in history] == [digests[i] for i in (0, 1, 2, 1, 0)]
    assert history[0].keys() == {
        "sequence", "adapter", "alias", "digest", "previous_digest", "etag", "moved_at", "actor",
    }  # fmt: skip
    lines = weft("alias", "history", NAME, "--last", "2").stdout.splitlines()
    assert lines[0].split() == ["WHEN", "ALIAS", "TO", "FROM", "BY"]
    assert len(lines) == 3
    assert digests[0][7:19] in lines[1]
    weft("yank", f"{NAME}:v1")
    refused = weft("alias", "rollback", NAME, "production", status=1)
    assert f"{digests[1]}, which is yanked" in refused.stderr
    assert "never had an alias" in weft("alias", "history", NAME, "nothing").stderr


def test_an_alias_is_removed_and_its_version_stays(weft: Weft, digests: list[str]) -> None:
    assert "moved" in weft("alias", "rm", NAME, "production", "--expect", "stale", status=1).stderr
    removed = said(weft("alias", "rm", NAME, "production", "--json"))
    assert removed == {"adapter": NAME, "alias": "production", "digest": digests[2]}
    assert "no alias" in weft("alias", "rm", NAME, "production", status=1).stderr
    assert said(weft("show", f"{NAME}:v2", "--json"))["aliases"] == ["latest"]
    assert "(removed)" in weft("alias", "history", NAME, "production").stdout


def test_protection_is_listed_given_and_taken(weft: Weft, digests: list[str]) -> None:
    found = said(weft("alias", "protect", "acme", "production", "--token", "release", "--token", "ops", "--json"))
    assert found == {"namespace": "acme", "name": "", "alias": "production", "token_names": ["release", "ops"]}
    assert "administrators may move it" in weft("alias", "protect", NAME, "canary").stdout
    assert [each["name"] for each in said(weft("alias", "protected", "--json"))] == ["", "topics"]
    assert "acme/*" in weft("alias", "protected", "acme").stdout
    assert said(weft("alias", NAME, "production", "v1", "--json"))["protected"]
    weft("alias", "unprotect", "acme", "production")
    assert "not protected" in weft("alias", "unprotect", "acme", "production", status=1).stderr
    assert "latest" in weft("alias", "protect", "acme", "latest", status=1).stderr


def test_moves_are_followed_from_where_one_was(weft: Weft, digests: list[str]) -> None:
    lines = weft("alias", "watch", "--json", "--after", "-1", "--moves", "6").stdout.splitlines()
    moves = [json.loads(line) for line in lines]
    assert [move["alias"] for move in moves] == ["latest", "production"] * 3
    told = weft("alias", "watch", NAME, "--after", str(moves[3]["sequence"]), "--moves", "2").stdout.splitlines()
    assert [line.split()[3] for line in told] == ["is", "is"]
    assert f"{NAME}:production is {digests[2]}, by local" in told[1]
    assert "another one" in weft("alias", "watch", "--after", "1000000", "--moves", "1", status=1).stderr


def test_a_version_is_deleted_only_when_somebody_says_yes(weft: Weft, digests: list[str]) -> None:
    asked = weft("delete", f"{NAME}:v0", status=1, stdin="n\n")
    assert f"delete {NAME}@{digests[0]} (tags v0)" in asked.stderr
    assert weft("show", f"{NAME}:v0").exit_code == 0
    deleted = said(weft("delete", f"{NAME}:v0", "--yes", "--json"))
    assert (deleted["digest"], deleted["freed_bytes"] > 0) == (digests[0], True)
    weft("show", f"{NAME}@{digests[0]}", status=1)
    assert f"deleted {NAME}@{digests[1]}" in weft("delete", f"{NAME}:v1", stdin="y\n").stdout
    assert "'production'" in weft("delete", f"{NAME}:v2", "--yes", status=1).stderr


@pytest.fixture
def remote(home: Home, digests: list[str]) -> Iterator[tuple[str, str]]:
    """The options that name the same registry, served."""
    with closing(EmbeddedRegistry(home)) as registry, serving(registry) as target:
        yield "--registry", target


def test_the_commands_answer_the_same_over_the_wire(weft: Weft, remote: tuple[str, str], digests: list[str]) -> None:
    assert said(weft("alias", "rollback", NAME, "production", "--json", *remote))["digest"] == digests[1]
    assert weft("alias", "history", NAME, *remote).stdout == weft("alias", "history", NAME).stdout
    watched = weft("alias", "watch", "--after", "-1", "--moves", "7", *remote).stdout
    assert watched == weft("alias", "watch", "--after", "-1", "--moves", "7").stdout
    assert len(watched.splitlines()) == 7
    for options in ((), ("--json",), ("--all-versions",), ("--sort", "published", "--json")):
        assert weft("list", *options, *remote).stdout == weft("list", *options).stdout
    assert weft("show", NAME, *remote).stdout == weft("show", NAME).stdout
    assert weft("diff", f"{NAME}:v0", f"{NAME}:v1", *remote).stdout == weft("diff", f"{NAME}:v0", f"{NAME}:v1").stdout
    assert said(weft("alias", "rm", NAME, "production", "--json", *remote))["digest"] == digests[1]
    assert said(weft("delete", f"{NAME}:v1", "--yes", "--json", *remote))["digest"] == digests[1]
    assert "no version" in weft("show", f"{NAME}@{digests[1]}", *remote, status=1).stderr
