"""The registry's commands against the embedded registry, in this process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from weft_registry import headers
from weft_registry.base import BaseSpec
from weft_registry.catalog import tables
from weft_registry.catalog.database import Catalog
from weft_registry.home import Home

Weft = Callable[..., Result]
MakePeft = Callable[..., Path]
VERSION_KEYS = {
    "reference",
    "adapter",
    "digest",
    "kind",
    "base",
    "base_weights_sha256",
    "tags",
    "aliases",
    "size_bytes",
    "published_at",
    "yanked",
    "yank_reason",
    "published_by",
    "parent_digest",
    "metrics",
}


@pytest.fixture
def pushed(weft: Weft, base: BaseSpec, peft_directory: MakePeft) -> dict[str, str]:
    """Two versions of acme/topics: v1, in production, and v2."""
    digests = {}
    for seed, labels in ((1, ("--tag", "v1", "--alias", "production")), (2, ("--tag", "v2"))):
        answer = weft("push", peft_directory(seed), "acme/topics", "--base", "tiny", *labels, "--json")
        digests[f"v{seed}"] = json.loads(answer.stdout)["digest"]
    return digests


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        header = headers.read_header(file, path.stat().st_size)
        return {
            e.name: np.frombuffer(b"".join(headers.read_tensor(file, e)), "<f4").reshape(e.shape)
            for e in header.entries
        }


def test_push_of_a_peft_directory_derives_the_manifest(weft: Weft, base: BaseSpec, peft_directory: MakePeft) -> None:
    answer = weft("push", peft_directory(), "acme/topics", "--base", "tiny", "--tag", "v1", "--json")
    version = json.loads(answer.stdout)
    assert version.keys() == VERSION_KEYS | {"existing"}
    assert (version["kind"], version["base"], version["existing"]) == ("lora", "acme/tiny", False)
    assert (version["tags"], version["aliases"]) == (["v1"], ["latest"])
    assert version["base_weights_sha256"] == base.fingerprint.weights_sha256


def test_push_of_a_peft_directory_without_base_says_what_to_add(
    weft: Weft, base: BaseSpec, peft_directory: MakePeft
) -> None:
    answer = weft("push", peft_directory(), "acme/topics", status=1)
    assert answer.stderr.startswith("error: ")
    assert "--base NAME" in answer.stderr
    assert "tiny" in answer.stderr
    assert json.loads(weft("list", "--json").stdout) == []


def test_push_leaves_the_directory_as_it_was(weft: Weft, base: BaseSpec, peft_directory: MakePeft) -> None:
    directory = peft_directory()
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    weft("push", directory, "acme/topics", "--base", "tiny")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_push_of_an_artifact_for_another_base_is_refused(
    weft: Weft, pushed: dict[str, str], home: Home, tmp_path: Path
) -> None:
    weft("pull", "acme/topics:v1", "--to", tmp_path / "artifact", "--quiet")
    other = json.loads((home.bases / "tiny" / "base.json").read_text())
    other["fingerprint"]["weights_sha256"] = "sha256:" + "99" * 32
    (home.bases / "other").mkdir()
    (home.bases / "other" / "base.json").write_text(json.dumps(other))
    answer = weft("push", tmp_path / "artifact", "acme/topics", "--base", "other", status=1)
    assert "99" * 32 in answer.stderr
    assert "22" * 32 in answer.stderr
    weft("push", tmp_path / "artifact", "acme/topics", "--base", "tiny")


def test_pooling_of_an_artifact_is_refused_and_not_ignored(weft: Weft, pushed: dict[str, str], tmp_path: Path) -> None:
    weft("pull", "acme/topics:v1", "--to", tmp_path / "artifact", "--quiet")
    assert "--pooling" in weft("push", tmp_path / "artifact", "acme/x", "--pooling", "sum", status=2).stderr


def test_pushing_the_same_artifact_again_says_so(weft: Weft, pushed: dict[str, str], tmp_path: Path) -> None:
    weft("pull", "acme/topics:v1", "--to", tmp_path / "artifact", "--quiet")
    answer = weft("push", tmp_path / "artifact", "acme/topics", "--json")
    assert (json.loads(answer.stdout)["digest"], json.loads(answer.stdout)["existing"]) == (pushed["v1"], True)
    assert "already published" in weft("push", tmp_path / "artifact", "acme/topics").stdout


def test_a_refused_artifact_names_every_violation_and_stores_nothing(
    weft: Weft, base: BaseSpec, peft_directory: MakePeft
) -> None:
    directory = peft_directory()
    for name in ("evil.pkl", "code.py"):
        (directory / name).write_bytes(b"x")
    answer = weft("push", directory, "acme/topics", "--base", "tiny", status=1)
    assert "evil.pkl" in answer.stderr
    assert "code.py" in answer.stderr
    assert "Traceback" not in answer.output
    assert json.loads(weft("list", "--json").stdout) == []


def test_list_shows_each_adapter_once_with_its_latest(
    weft: Weft, pushed: dict[str, str], peft_directory: MakePeft
) -> None:
    weft("push", peft_directory(3), "beta/mood", "--base", "tiny", "--json")
    listing = json.loads(weft("list", "--json").stdout)
    assert [(a["adapter"], a["version_count"]) for a in listing] == [("acme/topics", 2), ("beta/mood", 1)]
    assert listing[0].keys() == {"adapter", "namespace", "name", "version_count", "latest"}
    assert listing[0]["latest"].keys() == VERSION_KEYS
    assert listing[0]["latest"]["digest"] == pushed["v2"]
    assert [a["adapter"] for a in json.loads(weft("ls", "beta", "--json").stdout)] == ["beta/mood"]


def test_tables_that_nobody_watches_are_plain_and_whole(weft: Weft, pushed: dict[str, str]) -> None:
    header, row = weft("list").stdout.splitlines()
    assert header.split() == ["ADAPTER", "KIND", "LATEST", "TAGS", "VERSIONS", "SIZE", "BASE", "PUBLISHED"]
    assert row.split()[:5] == ["acme/topics", "lora", pushed["v2"][7:19], "v2", "2"]
    assert "\x1b" not in row


def test_an_empty_registry_lists_nothing_and_says_what_to_do(weft: Weft) -> None:
    answer = weft("list")
    assert answer.stdout == ""
    assert "weft push" in answer.stderr
    assert json.loads(weft("list", "--json").stdout) == []


def test_versions_are_newest_first_with_tags_and_aliases(weft: Weft, pushed: dict[str, str]) -> None:
    found = json.loads(weft("versions", "acme/topics", "--json").stdout)
    assert [(v["digest"], v["tags"], sorted(v["aliases"])) for v in found] == [
        (pushed["v2"], ["v2"], ["latest"]),
        (pushed["v1"], ["v1"], ["production"]),
    ]
    assert all(version.keys() == VERSION_KEYS for version in found)
    lines = weft("versions", "acme/topics").stdout.splitlines()
    assert lines[0].split() == ["DIGEST", "TAGS", "ALIASES", "KIND", "BASE", "SIZE", "PUBLISHED", "METRICS"]
    assert lines[1].split()[:5] == [pushed["v2"][7:19], "v2", "latest", "lora", "acme/tiny"]


def test_versions_of_a_misspelt_adapter_names_the_nearest(weft: Weft, pushed: dict[str, str]) -> None:
    assert "acme/topics" in weft("versions", "acme/topic", status=1).stderr


def test_show_has_the_manifest_as_published(weft: Weft, pushed: dict[str, str]) -> None:
    shown = json.loads(weft("show", "acme/topics:v1", "--json").stdout)
    assert shown.keys() == VERSION_KEYS | {"manifest", "parent", "children", "signatures"}
    assert shown["manifest"]["adapter"]["r"] == 4
    text = weft("show", "acme/topics:production").stdout
    assert pushed["v1"] in text
    assert "adapter_model.safetensors" in text


def test_a_malformed_reference_is_one_line_and_status_1(weft: Weft) -> None:
    answer = weft("show", "nonsense", status=1)
    assert answer.stderr == "error: 'nonsense' is not an adapter name: expected NAMESPACE/NAME\n"


def test_pull_brings_exactly_the_version(weft: Weft, pushed: dict[str, str], tmp_path: Path) -> None:
    answer = json.loads(weft("pull", "acme/topics:v1", "--to", tmp_path / "here", "--json").stdout)
    assert (answer["digest"], answer["path"]) == (pushed["v1"], str(tmp_path / "here"))
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "adapter_config.json",
        "adapter_manifest.json",
        "adapter_model.safetensors",
    }


def test_pull_goes_by_default_to_a_directory_of_the_adapters_name(
    weft: Weft, pushed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weft("pull", "acme/topics")
    assert (tmp_path / "topics" / "adapter_manifest.json").is_file()


def test_pull_never_overwrites_something_else(weft: Weft, pushed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    weft("pull", "acme/topics", "--to", tmp_path / "mine", status=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_alias_moves_only_from_the_expected_etag(weft: Weft, pushed: dict[str, str]) -> None:
    moved = json.loads(weft("alias", "acme/topics", "production", "v2", "--json").stdout)
    assert moved.keys() == {"adapter", "alias", "digest", "etag", "moved_at", "previous_digest", "protected"}
    assert (moved["digest"], moved["previous_digest"]) == (pushed["v2"], pushed["v1"])
    again = weft("alias", "acme/topics", "production", "v1", "--expect", moved["etag"], "--json")
    lost = weft("alias", "acme/topics", "production", "v2", "--expect", moved["etag"], status=1)
    assert json.loads(again.stdout)["etag"] in lost.stderr or "moved" in lost.stderr
    assert json.loads(weft("show", "acme/topics:production", "--json").stdout)["digest"] == pushed["v1"]


def test_an_alias_takes_a_whole_reference_of_its_own_adapter_only(weft: Weft, pushed: dict[str, str]) -> None:
    moved = weft("alias", "acme/topics", "production", f"acme/topics@{pushed['v2']}", "--json")
    assert json.loads(moved.stdout)["digest"] == pushed["v2"]
    weft("alias", "acme/topics", "production", "beta/mood:v1", status=1)


def test_a_yanked_version_is_hidden_and_stays_readable_by_digest(weft: Weft, pushed: dict[str, str]) -> None:
    yanked = json.loads(weft("yank", "acme/topics:v2", "--reason", "wrong split", "--json").stdout)
    assert (yanked["digest"], yanked["yanked"], yanked["yank_reason"]) == (pushed["v2"], True, "wrong split")
    assert [v["digest"] for v in json.loads(weft("versions", "acme/topics", "--json").stdout)] == [pushed["v1"]]
    assert len(json.loads(weft("versions", "acme/topics", "--all", "--json").stdout)) == 2
    assert "wrong split" in weft("show", f"acme/topics@{pushed['v2']}").stdout


def test_a_yank_under_an_alias_is_refused_and_names_it(weft: Weft, pushed: dict[str, str]) -> None:
    assert "production" in weft("yank", "acme/topics:v1", status=1).stderr


def test_verify_of_a_whole_version_is_quiet_about_problems(weft: Weft, pushed: dict[str, str]) -> None:
    report = json.loads(weft("verify", "acme/topics:v1", "--json").stdout)
    assert report.keys() == {"digest", "ok", "checked_files", "checked_bytes", "problems"}
    assert (report["ok"], report["checked_files"], report["problems"]) == (True, 2, [])
    assert "as published" in weft("verify", "acme/topics:v1").stdout


def test_verify_of_a_corrupt_blob_fails_and_names_the_file(weft: Weft, pushed: dict[str, str], home: Home) -> None:
    shown = json.loads(weft("show", "acme/topics:v1", "--json").stdout)
    (digest,) = (f["sha256"] for f in shown["manifest"]["files"] if f["path"] == "adapter_model.safetensors")
    blob = home.registry / "blobs" / "sha256" / digest[7:9] / digest[7:]
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    answer = weft("verify", "acme/topics:v1", "--json", status=1)
    assert json.loads(answer.stdout)["ok"] is False
    assert "  - adapter_model.safetensors" in answer.stderr


def test_export_of_qalora_is_a_lora_that_computes_the_same(
    weft: Weft, base: BaseSpec, peft_directory: MakePeft, tmp_path: Path
) -> None:
    directory = peft_directory(qalora=True, lora_alpha=3, use_rslora=False)
    weft("push", directory, "acme/q", "--base", "tiny")
    weft("export", "acme/q", "--to", tmp_path / "lora", "--quiet")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert not config.get("use_qalora")
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    ours, theirs = (read_tensors(d / "adapter_model.safetensors") for d in (directory, tmp_path / "lora"))
    x = np.random.default_rng(5).standard_normal((7, 64))
    for module in base.linears:
        name = f"base_model.model.{module}.lora_"
        # PEFT's QA-LoRA: the mean over each group, times the number of groups, scaled by alpha / r.
        pooled = x.reshape(7, 2, 32).mean(-1) * 2
        expected = 3 / 4 * pooled @ ours[f"{name}A.weight"].T @ ours[f"{name}B.weight"].T
        alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
        found = alpha / config["r"] * x @ theirs[f"{name}A.weight"].T @ theirs[f"{name}B.weight"].T
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_export_of_lora_keeps_every_byte_but_the_manifest(weft: Weft, pushed: dict[str, str], tmp_path: Path) -> None:
    weft("pull", "acme/topics:v1", "--to", tmp_path / "artifact", "--quiet")
    weft("export", "acme/topics:v1", "--to", tmp_path / "peft", "--quiet")
    (tmp_path / "artifact" / "adapter_manifest.json").unlink()
    left, right = ({p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("artifact", "peft"))
    assert left == right
    weft("export", "acme/topics:v1", "--to", tmp_path / "peft", status=1)


def test_base_list_and_show_read_what_is_stored(weft: Weft, base: BaseSpec) -> None:
    (listed,) = json.loads(weft("base", "list", "--json").stdout)
    assert listed["name"] == "tiny"
    assert listed["fingerprint"] == base.fingerprint.as_json()
    shown = json.loads(weft("base", "show", "tiny", "--json").stdout)
    assert set(shown.pop("engines")) == {"torch", "vllm"}
    assert shown == listed
    assert "int4 g32 float minimum" in weft("base", "list").stdout
    assert "linear q_proj  2 x (64, 64)" in weft("base", "show", "tiny").stdout


def test_an_unknown_base_names_the_ones_there_are(weft: Weft, base: BaseSpec) -> None:
    assert "there are: tiny" in weft("base", "show", "huge", status=1).stderr


def test_without_bases_the_list_says_how_to_add_one(weft: Weft) -> None:
    assert "weft base add" in weft("base", "list").stderr
    assert json.loads(weft("base", "list", "--json").stdout) == []


def test_a_missing_directory_is_wrong_usage(weft: Weft, tmp_path: Path) -> None:
    assert "does not exist" in weft("push", tmp_path / "nothing", "acme/topics", status=2).stderr


def test_control_characters_of_strangers_never_reach_the_terminal(
    weft: Weft, pushed: dict[str, str], home: Home
) -> None:
    refused = weft("yank", "acme/topics:v2", "--reason", "\x1b[2Jgone", status=1)
    assert "control character" in refused.stderr
    weft("yank", "acme/topics:v2", "--reason", "gone")
    # As a registry of an earlier Weft, or somebody else's, may say it.
    catalog = Catalog(home.registry / "catalog.db")
    with catalog.write() as connection:
        connection.execute(tables.versions.update().values(yank_reason="\x1b[2Jgone"))
    catalog.close()
    shown = weft("show", f"acme/topics@{pushed['v2']}").stdout
    assert "\ufffd[2Jgone" in shown


def test_a_damaged_home_is_an_error_and_no_traceback(weft: Weft, home: Home) -> None:
    home.root.mkdir()
    home.registry.write_text("not a directory")
    answer = weft("list", status=1)
    assert answer.stderr.startswith("error: ")
    shutil.rmtree(home.root)
