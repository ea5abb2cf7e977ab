"""`weft promote`, and `weft train --publish` as far as it goes without a model."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from weft_client.cli import promote as promoting
from weft_client.cli.preflight import check_publishing
from weft_registry import artifact as artifacts
from weft_registry.api import Alias, RegistryApi
from weft_registry.base import BaseSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import AlreadyExistsError, InvalidInputError, PreconditionError, UnavailableError
from weft_registry.home import Home
from weft_registry.manifest import Metric
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

Weft = Callable[..., Result]
MakePeft = Callable[..., Path]
TOPICS = AdapterName("acme", "topics")
CONFIG = "{base: tiny, method: lora, output: out, data: {train: train.jsonl}}"


@pytest.fixture
def pushed(weft: Weft, base: BaseSpec, peft_directory: MakePeft, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Publishes v1 with an exact match of 0.75 and v2 with 0.9, to the embedded registry or to a server."""

    def push(*registry: str) -> dict[str, str]:
        digests = {}
        for seed, value in ((1, "0.750000"), (2, "0.900000")):
            name = f"{'remote' if registry else 'local'}-{seed}"
            scratch = f"scratch/{name}"
            weft("push", peft_directory(seed, name=name), scratch, "--base", "tiny")
            directory = tmp_path / "artifacts" / name
            weft("pull", scratch, "--to", directory, "--quiet")
            measured = [Metric("exact_match", value, "sha256:" + "44" * 32, "eval")]
            measured.append(Metric("loss", "1.100000", "sha256:" + "44" * 32, "eval"))
            artifacts.write_manifest(directory, replace(artifacts.read(directory), metrics=measured))
            answer = weft("push", directory, "acme/topics", "--tag", f"v{seed}", "--json", *registry)
            digests[f"v{seed}"] = json.loads(answer.stdout)["digest"]
        return digests

    return push


def alias_of(weft: Weft, alias: str, *registry: str) -> str:
    return str(json.loads(weft("show", f"acme/topics:{alias}", "--json", *registry).stdout)["digest"])


@pytest.mark.parametrize("where", ["embedded", "server"])
def test_an_alias_moves_if_and_only_if_the_metric_holds(
    weft: Weft, pushed: Callable[..., dict[str, str]], where: str, request: pytest.FixtureRequest
) -> None:
    registry = ("--registry", request.getfixturevalue("registry_server")) if where == "server" else ()
    digests = pushed(*registry)
    condition = "exact_match >= 0.75 and loss < 1.2"
    answer = weft("promote", "acme/topics:v1", "production", "--if", condition, *registry)
    assert answer.stdout.splitlines()[:2] == [
        "exact_match = 0.750000 >= 0.75: holds",
        "loss = 1.100000 < 1.2: holds",
    ]
    assert alias_of(weft, "production", *registry) == digests["v1"]
    weft("promote", "acme/topics:v2", "production", "--if", "exact_match >= 0.8", *registry)
    assert alias_of(weft, "production", *registry) == digests["v2"]
    answer = weft("promote", "acme/topics:v1", "production", "--if", "exact_match >= 0.8", *registry, status=3)
    assert answer.stdout == "exact_match = 0.750000 >= 0.8: does not hold\n"
    assert "production stays where it is" in answer.stderr
    assert alias_of(weft, "production", *registry) == digests["v2"]


def test_the_answer_for_programs_has_every_comparison(weft: Weft, pushed: Callable[..., dict[str, str]]) -> None:
    digests = pushed()
    arguments = ("promote", "acme/topics:v1", "production", "--if", "exact_match > 0.8 and loss < 2", "--json")
    answer = json.loads(weft(*arguments, status=3).stdout)
    assert (answer["digest"], answer["promoted"], answer["alias"]) == (digests["v1"], False, None)
    assert [(c["metric"], c["value"], c["op"], c["number"], c["holds"]) for c in answer["conditions"]] == [
        ("exact_match", "0.750000", ">", "0.8", False),
        ("loss", "1.100000", "<", "2", True),
    ]
    arguments = ("promote", "acme/topics:v1", "production", "--if", "loss < 2", "--json")
    assert json.loads(weft(*arguments).stdout)["alias"]["digest"] == digests["v1"]


def test_a_missing_metric_is_an_error_that_names_those_there_are(
    weft: Weft, pushed: Callable[..., dict[str, str]]
) -> None:
    pushed()
    answer = weft("promote", "acme/topics:v1", "production", "--if", "accuracy >= 0.8", status=1)
    assert "no metric 'accuracy': it has exact_match, loss" in answer.stderr
    assert "no tag or alias 'production'" in weft("show", "acme/topics:production", status=1).stderr


def test_a_bad_condition_or_alias_is_refused_before_the_registry_is_asked(weft: Weft) -> None:
    unreachable = ("--registry", "127.0.0.1:1")
    assert "NAME OP NUMBER" in weft("promote", "acme/t", "live", "--if", "good", *unreachable, status=1).stderr
    assert "tag or alias" in weft("promote", "acme/t", "a..b", "--if", "loss < 1", *unreachable, status=1).stderr
    assert "latest" in weft("promote", "acme/t", "latest", "--if", "loss < 1", *unreachable, status=1).stderr


def test_a_tag_is_never_promoted_to(weft: Weft, pushed: Callable[..., dict[str, str]]) -> None:
    pushed()
    assert "is a tag" in weft("promote", "acme/topics:v2", "v1", "--if", "loss < 2", status=1).stderr


def test_whoever_moves_the_alias_meanwhile_wins(
    weft: Weft, pushed: Callable[..., dict[str, str]], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = pushed()
    weft("alias", "acme/topics", "production", "v1")
    ask = promoting._etag

    def then_somebody_moves_it(registry: RegistryApi, *arguments: object) -> str:
        etag = ask(registry, *arguments)
        registry.set_alias(TOPICS, "production", "v2")
        registry.set_alias(TOPICS, "production", "v1")
        return etag

    monkeypatch.setattr(promoting, "_etag", then_somebody_moves_it)
    answer = weft("promote", "acme/topics:v2", "production", "--if", "loss < 2", status=1)
    assert "somebody moved it" in answer.stderr
    assert alias_of(weft, "production") == digests["v1"]


def test_an_expected_etag_decides(weft: Weft, pushed: Callable[..., dict[str, str]], home: Home) -> None:
    digests = pushed()
    registry = EmbeddedRegistry(home)
    moved: Alias = registry.set_alias(TOPICS, "production", "v1")
    arguments = ("promote", "acme/topics:v2", "production", "--if", "loss < 2", "--expect")
    assert "somebody moved it" in weft(*arguments, "none", status=1).stderr
    assert alias_of(weft, "production") == digests["v1"]
    weft(*arguments, moved.etag)
    assert alias_of(weft, "production") == digests["v2"]
    registry.close()


def test_publishing_is_asked_about_without_publishing(
    weft: Weft, pushed: Callable[..., dict[str, str]], home: Home
) -> None:
    pushed()
    weft("alias", "acme/topics", "production", "v1")
    registry = EmbeddedRegistry(home)
    check_publishing(registry, TOPICS, ["v3"], ["production", "candidate"])
    check_publishing(registry, AdapterName("acme", "new"), ["v1"])
    with pytest.raises(AlreadyExistsError, match="v1 already names"):
        check_publishing(registry, TOPICS, ["v1"])
    with pytest.raises(AlreadyExistsError, match="is an alias"):
        check_publishing(registry, TOPICS, ["production"])
    with pytest.raises(AlreadyExistsError, match="is a tag"):
        check_publishing(registry, TOPICS, [], ["v1"])
    with pytest.raises(InvalidInputError, match="no word can be both"):
        check_publishing(registry, TOPICS, ["v9"], ["v9"])
    with pytest.raises(InvalidInputError, match="tag"):
        check_publishing(registry, TOPICS, ["a..b"])
    assert len(registry.list_versions(TOPICS)) == 2
    assert "acme/new" not in [str(summary.adapter) for summary in registry.list_adapters()]
    registry.close()


def test_a_registry_server_is_asked_too(registry_server: str) -> None:
    registry = RemoteRegistry(registry_server)
    check_publishing(registry, TOPICS, ["v1"], ["candidate"])
    assert registry.list_adapters() == []
    registry.close()


def test_whoever_may_not_publish_is_told_before_training(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: EmbeddedRegistry, adapter: AdapterName, *_: object, **__: object) -> None:
        raise PreconditionError(f"you may not publish in {adapter.namespace}")

    monkeypatch.setattr(EmbeddedRegistry, "publish", refuse)
    registry = EmbeddedRegistry(home)
    with pytest.raises(PreconditionError, match="may not publish in acme"):
        check_publishing(registry, TOPICS)
    registry.close()


def test_what_cannot_be_published_is_refused_before_training(
    weft: Weft, pushed: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed()
    config = tmp_path / "topics.yaml"
    config.write_text(CONFIG)
    from weft_trainer import api

    def never(*_: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(api, "train_from_file", never)
    assert "NAMESPACE/NAME" in weft("train", config, "--publish", "topics", status=1).stderr
    assert "v1 already names" in weft("train", config, "--publish", "acme/topics", "--tag", "v1", status=1).stderr
    assert "--publish" in weft("train", config, "--tag", "v1", status=2).stderr
    monkeypatch.setattr(RemoteRegistry, "find_missing", lambda *_: (_ for _ in ()).throw(UnavailableError("gone")))
    gone = ("--registry", "127.0.0.1:1")
    assert "gone" in weft("train", config, "--publish", "acme/topics", *gone, status=1).stderr


@pytest.mark.parametrize("where", ["embedded", "server"])
def test_a_fusions_parts_are_looked_up_where_it_will_be_published_before_training(
    weft: Weft,
    pushed: Callable[..., dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    request: pytest.FixtureRequest,
) -> None:
    registry = ("--registry", request.getfixturevalue("registry_server")) if where == "server" else ()
    digests = pushed(*registry)
    pushed_name = "remote" if registry else "local"
    directory = tmp_path / "artifacts" / f"{pushed_name}-2"
    config = tmp_path / "fused.yaml"
    head = "base: tiny\nmethod: fusion\noutput: out\ndata: {train: train.jsonl}\n"
    from weft_trainer import api

    def train(*_: object) -> None:
        raise InvalidInputError("training began")

    monkeypatch.setattr(api, "train_from_file", train)

    def answer(*parts: str) -> str:
        config.write_text(f"{head}adapter:\n  parts: [{', '.join(parts)}]\n")
        return weft("train", config, "--publish", "acme/fused", *registry, status=1).stderr

    at = f"error: {config}:6:3: adapter.parts: "
    part = f"acme/second@{digests['v2']}"
    missing = answer("acme/topics:v1", f"acme/second={directory}")
    assert missing.startswith(f"{at}{part}, a part of acme/fused, is not in this registry: push it first (no adapter")
    assert missing.endswith(f"; `weft push {directory} acme/second` does\n")
    assert f"{at}acme/gone, a part of acme/fused, is not in this registry" in answer("acme/gone")
    gone = f"acme/second={tmp_path}/none"
    assert answer(gone) == f"{at}{gone}: no artifact directory at {tmp_path}/none\n"
    assert f"{at}second={directory}: 'second' is not an adapter name: expected" in answer(f"second={directory}")
    weft("push", directory, "acme/second", *registry)
    assert answer("acme/topics:v1", f"acme/second={directory}") == "error: training began\n"
    weft("yank", part, "--reason", "withdrawn", *registry)
    for named in (f"acme/second={directory}", part, "acme/second"):
        refused = answer("acme/topics:v1", named)
        assert "a part of acme/fused, is yanked (withdrawn): choose another version or another adapter" in refused


def test_what_a_bottleneck_adapter_is_stacked_on_need_not_be_published(
    weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "task.yaml"
    config.write_text(CONFIG.replace("lora", "pfeiffer").replace("output", "adapter: {stack_on: [acme/gone]}, output"))
    from weft_trainer import api

    def train(*_: object) -> None:
        raise InvalidInputError("training began")

    monkeypatch.setattr(api, "train_from_file", train)
    assert weft("train", config, "--publish", "acme/task", status=1).stderr == "error: training began\n"


def test_a_trained_adapter_is_published_with_its_labels(
    weft: Weft, pushed: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = pushed()
    config = tmp_path / "topics.yaml"
    config.write_text(CONFIG)
    from weft_trainer import api

    settings: list[list[str]] = []

    def train(path: Path, overrides: list[str], _report: object) -> Path:
        settings.append(overrides)
        return tmp_path / "artifacts" / "local-2"

    monkeypatch.setattr(api, "train_from_file", train)
    arguments = ("--publish", "acme/fresh", "--tag", "v7", "--alias", "candidate")
    answer = json.loads(weft("train", config, "training.seed=1", "--resume", *arguments, "--json").stdout)
    assert settings == [["training.seed=1", "training.resume=true"]]
    assert answer["published"]["digest"] == digests["v2"]
    assert answer["published"]["tags"] == ["v7"]
    assert answer["published"]["aliases"] == ["candidate", "latest"]
    assert "published acme/fresh@" in weft("train", config, "--publish", "acme/fresh").stdout


def test_an_adapter_that_cannot_be_published_after_all_is_not_lost(
    weft: Weft, pushed: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed()
    config = tmp_path / "topics.yaml"
    config.write_text(CONFIG)
    artifact = tmp_path / "artifacts" / "local-2"
    from weft_trainer import api

    def train(*_: object) -> Path:
        # Somebody takes the tag while the run is going on.
        weft("push", tmp_path / "artifacts" / "local-1", "acme/topics", "--tag", "v3")
        return artifact

    monkeypatch.setattr(api, "train_from_file", train)
    answer = weft("train", config, "--publish", "acme/topics", "--tag", "v3", "--alias", "candidate", status=1)
    assert "trained, but not published" in answer.stderr
    assert f"weft push {artifact} acme/topics --tag v3 --alias candidate" in answer.stderr


def test_an_interrupted_run_ends_with_the_signals_status(
    weft: Weft, base: BaseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "topics.yaml"
    config.write_text(CONFIG)
    from weft_trainer import api

    def stopped(*_: object) -> None:
        raise PreconditionError("stopped by SIGTERM", reason="INTERRUPTED", metadata={"signal": "15"})

    monkeypatch.setattr(api, "train_from_file", stopped)
    monkeypatch.setattr(sys, "argv", ["weft", "train", "topics.yaml"])
    # There is nothing to resume.
    assert weft("train", config, status=143).stderr == "error: stopped by SIGTERM: weft train topics.yaml\n"


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        ("train x.yaml", "train x.yaml --resume"),
        ("train x.yaml --resume -q", "train x.yaml -q --resume"),
        ("train -q -- x.yaml training.seed=1", "train -q --resume -- x.yaml training.seed=1"),
        ("train x.yaml --resume -- training.seed=1", "train x.yaml --resume -- training.seed=1"),
        ("train x.yaml training.resume=false training.seed=1", "train x.yaml training.seed=1 --resume"),
        ("train x.yaml -- training.resume=no", "train x.yaml --resume --"),
        ("train x.yaml training.resume=true", "train x.yaml --resume"),
    ],
)
def test_the_command_that_goes_on_is_the_one_that_was_typed(
    weft: Weft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, printed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    from weft_trainer import api

    def stopped(*_: object) -> None:
        raise PreconditionError("stopped", reason="INTERRUPTED", metadata={"signal": "2", "checkpoint": "x"})

    monkeypatch.setattr(api, "train_from_file", stopped)
    monkeypatch.setattr(sys, "argv", ["/bin/weft", *typed.split()])
    assert weft(*typed.split(), status=130).stderr == f"error: stopped: weft {printed}\n"
    # It is the same command, with nothing in it that contradicts.
    monkeypatch.setattr(sys, "argv", ["weft", *printed.split()])
    assert weft(*printed.split(), status=130).stderr == f"error: stopped: weft {printed}\n"


def test_resuming_and_not_resuming_at_once_is_wrong_usage(weft: Weft, tmp_path: Path) -> None:
    config = tmp_path / "topics.yaml"
    config.write_text(CONFIG)
    answer = weft("train", config, "training.resume=false", "--resume", status=2)
    assert "--resume is training.resume=true, and training.resume=false says otherwise" in answer.stderr
    assert "resume: true" in weft("train", config, "training.resume=true", "--resume", "--print-config").stdout
