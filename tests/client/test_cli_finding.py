"""`weft list` with filters, `weft show` with lineage, `weft diff`."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import Result

from weft_client.cli.ages import Age, Deadline
from weft_registry import artifact
from weft_registry.base import BaseSpec
from weft_registry.manifest import Metric
from weft_registry.peft_format import import_directory

Weft = Callable[..., Result]
DATA = "sha256:" + "11" * 32


@pytest.fixture
def push(weft: Weft, base: BaseSpec, peft_directory: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Publishes a version with these metrics and this provenance; its digest."""

    def make(name: str, seed: int, *labels: str, metrics: dict[str, str] | None = None, **provenance: Any) -> str:
        directory = tmp_path / f"artifact-{seed}"
        import_directory(peft_directory(seed), base, directory, name=name)
        found = [Metric(metric, value, DATA, "eval") for metric, value in (metrics or {}).items()]
        manifest = replace(artifact.read(directory), metrics=found, provenance=provenance)
        (directory / artifact.MANIFEST).unlink()
        artifact.write_manifest(directory, manifest)
        return str(json.loads(weft("push", directory, name, *labels, "--json").stdout)["digest"])

    return make


def said(answer: Result) -> Any:
    return json.loads(answer.stdout)


def test_versions_are_listed_by_what_is_in_their_manifests(weft: Weft, push: Callable[..., str]) -> None:
    old = push("acme/topics", 1, "--tag", "v1", metrics={"exact_match": "0.7"})
    new = push("acme/topics", 2, metrics={"exact_match": "0.9", "loss": "0.5"}, parent_version=old)
    other = push("beta/mood", 3, "--alias", "production", metrics={"exact_match": "0.8"})

    def listed(*options: str) -> list[str]:
        return [version["digest"] for version in said(weft("list", *options, "--json"))]

    assert listed("--where", "exact_match >= 0.8") == [new, other]
    assert listed("--where", "exact_match < 0.8") == []
    assert listed("--where", "exact_match < 0.8", "--all-versions") == [old]
    assert listed("--where", "exact_match > 0.8 and loss < 1", "--kind", "lora", "--base", "tiny") == [new]
    # Best first, newest first.
    assert listed("--sort", "metric:exact_match", "--all-versions") == [new, other, old]
    assert listed("--sort", "metric:exact_match", "--reverse", "--all-versions") == [old, other, new]
    assert listed("--sort", "published") == [other, new]
    assert listed("--sort", "name", "--reverse") == [other, new]
    assert listed("acme", "--sort", "size") == [new]
    # A label and a parent are looked for in every version.
    assert listed("--label", "v1") == [old]
    assert listed("--children-of", "acme/topics:v1") == [new]
    assert listed("--newer-than", "1h") == [new, other]
    assert listed("--older-than", "1h") == []
    assert listed("--newer-than", "2020-01-31", "--kind", "prefix") == []
    header, *rows = weft("list", "--sort", "published").stdout.splitlines()
    assert header.split() == ["ADAPTER", "DIGEST", "KIND", "LABELS", "SIZE", "BASE", "PUBLISHED", "METRICS"]
    assert "exact_match=0.8 (eval)" in rows[0]
    assert "no version is like that" in weft("list", "--kind", "ia3").stderr
    assert "NAME OP NUMBER" in weft("list", "--where", "good", status=1).stderr
    for key in ("beauty", "-published", "metric:"):
        assert "--reverse turns it around" in weft("list", f"--sort={key}", status=2).stderr
    assert "no age" in weft("list", "--newer-than", "soon", status=2).stderr
    assert "before there was a calendar" in weft("list", "--newer-than", "999999w", status=2).stderr


def test_an_age_is_a_time_that_was_so_long_ago() -> None:
    now, hours = Age().convert("0s", None, None), Age().convert("36h", None, None)
    assert abs((now - hours).total_seconds() - 36 * 3600) < 60
    assert Age().convert("2026-01-31", None, None).isoformat() == "2026-01-31T00:00:00+00:00"
    assert Age().convert("2026-01-31T12:00+02:00", None, None).utcoffset()


def test_a_deadline_is_a_time_to_come() -> None:
    at = Deadline().convert("36h", None, None)
    assert abs((at - datetime.now(UTC)).total_seconds() - 36 * 3600) < 60
    assert Deadline().convert("2999-01-31", None, None).isoformat() == "2999-01-31T00:00:00+00:00"
    for text, words in {
        "0d": "no time from now",
        "soon": "no time from now",
        "999999w": "after the calendar ends",
        "2026-01-31": "is past",
    }.items():
        with pytest.raises(click.BadParameter, match=words):
            Deadline().convert(text, None, None)


def test_show_says_where_a_version_comes_from_and_what_came_of_it(weft: Weft, push: Callable[..., str]) -> None:
    datasets = [{"uri": "train.jsonl", "sha256": DATA, "split": "train", "examples": 10, "forms": {"messages": 10}}]
    config = {"training": {"learning_rate": "0.0002", "seed": 7}, "data": {"train": ["a", "b"]}}
    parent = push("acme/topics", 1, "--tag", "v1")
    child = push(
        "acme/child", 2, parent_version=parent, datasets=datasets, config=config, config_sha256="sha256:" + "ab" * 32
    )
    shown = said(weft("show", "acme/child", "--json"))
    assert shown["parent"] == {"digest": parent, "references": [f"acme/topics@{parent}"], "deleted": False}
    assert (shown["published_by"], shown["parent_digest"], shown["signatures"]) == ("local", parent, [])
    assert said(weft("show", "acme/topics:v1", "--json"))["children"] == [f"acme/child@{child}"]
    lines = [" ".join(line.split()) for line in weft("show", "acme/child").stdout.splitlines()]
    assert f"parent acme/topics@{parent}" in lines
    assert f"dataset train.jsonl (train), 10 examples {DATA}" in lines
    assert f"training config sha256:{'ab' * 32}" in lines
    assert "config.training.learning_rate 0.0002" in lines
    assert "config.data.train[1] b" in lines
    assert any(line.startswith("published ") and line.endswith(" by local") for line in lines)
    told = weft("show", "acme/topics:v1").stdout
    assert f"acme/child@{child} (latest)" in told


def test_a_parent_that_is_gone_is_told_from_one_that_never_was_here(weft: Weft, push: Callable[..., str]) -> None:
    parent = push("acme/topics", 1, "--tag", "v1")
    push("acme/topics", 2, parent_version=parent)
    push("acme/other", 3, parent_version=DATA)
    weft("yank", "acme/topics:v1")
    assert said(weft("show", "acme/topics", "--json"))["parent"]["references"] == [f"acme/topics@{parent}"]
    weft("delete", f"acme/topics@{parent}", "--yes")
    assert said(weft("show", "acme/topics", "--json"))["parent"] == {
        "digest": parent,
        "references": [],
        "deleted": True,
    }
    assert f"{parent} (deleted)" in weft("show", "acme/topics").stdout
    assert f"{DATA} (not in this registry)" in weft("show", "acme/other").stdout


def test_diff_says_what_differs_down_to_the_tensors(weft: Weft, push: Callable[..., str]) -> None:
    push("acme/topics", 1, "--tag", "v1", metrics={"loss": "1.5"}, seed_used=1)
    push("acme/topics", 2, "--tag", "v2", metrics={"loss": "1.25", "extra": "1"}, seed_used=2)
    found = said(weft("diff", "acme/topics:v1", "acme/topics:v2", "--json"))
    assert {"key": "provenance.seed_used", "old": 1, "new": 2} in found["settings"]
    assert found["metrics"] == [
        {"name": "loss", "split": "eval", "old": "1.5", "new": "1.25"},
        {"name": "extra", "split": "eval", "old": None, "new": "1"},
    ]
    assert len(found["tensors"]) == 8
    assert all(tensor["changed"] and 0.5 < tensor["relative"] < 3 for tensor in found["tensors"])
    assert len(found["products"]) == 4
    assert np.isfinite(found["products_relative"])
    text = weft("diff", "acme/topics:v1", "acme/topics:v2").stdout
    for part in (
        "provenance.seed_used",
        "loss (eval)",
        "-0.25",
        "products s B A of 4 modules",
        "8 of 8 tensors differ",
    ):
        assert part in text
    same = weft("diff", "acme/topics:v1", "acme/topics:v1").stdout
    assert "no setting differs" in same
    assert "0 of 8 tensors differ" in same
    assert "0 together" in same
