from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.tiny_models import AddedBase
from weft_client.cli.app import app
from weft_registry import artifact as artifacts
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_trainer.config import run as configs
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.formats import Message, Row
from weft_trainer.data.records import read_records
from weft_trainer.data.templates import FieldRecords, load_templates

FILE = """\
words: {label: {"0": "no", "1": "yes"}}
templates:
  - name: question
    prompt: "{premise}\\nDoes it follow that {hypothesis}?\\n{choices}\\nAnswer:"
    completion: " {label}"
  - name: short
    prompt: "{premise} => {hypothesis}? {{yes or no}}"
    completion: " {label}"
  - name: turned
    inverted: true
    prompt: "Say something from which {hypothesis} ({label}):"
    completion: " {premise}"
  - name: unseen
    held_out: true
    prompt: "Entailed: {hypothesis}, by {premise}?"
    completion: " {label}"
"""
RECORDS = [
    {"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 2, "choices": ["yes", "no"], "id": i} for i in range(12)
]


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    path = tmp_path / "nli.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def records(tmp_path: Path) -> FieldRecords:
    path = tmp_path / "nli.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    file = read_records(path)
    return FieldRecords(file, file.records, "train")


def test_a_record_is_written_as_the_pattern_says(templates: Path, records: FieldRecords) -> None:
    rows = records.training_rows(load_templates(templates), 3, 0, "error")
    of_first = {row for row in rows.rows if row.number == 1}
    assert of_first == {
        Row("p0\nDoes it follow that h0?\n- yes\n- no\nAnswer:", " no"),
        Row("p0 => h0? {yes or no}", " no"),
        Row("Say something from which h0 (no):", " p0"),
    }
    assert rows.sha256 == digests.of_file(Path(records.uri))
    assert rows.templates_sha256 == digests.of_file(templates)


def test_templates_are_used_evenly_and_each_once_a_record(templates: Path, records: FieldRecords) -> None:
    file = load_templates(templates)
    one = records.training_rows(file, 1, 0, "error")
    assert one.forms == {"question": 4, "short": 4, "turned": 4}
    assert one == records.training_rows(file, 1, 0, "error")
    assert one.rows != records.training_rows(file, 1, 1, "error").rows
    two = records.training_rows(file, 2, 0, "error")
    assert two.forms == {"question": 8, "short": 8, "turned": 8}
    assert len({(row.number, row.prompt) for row in two.rows}) == 24
    with pytest.raises(InvalidInputError, match=r"phrasings: 4, but .* has 3 templates to train with"):
        records.training_rows(file, 4, 0, "error")


def test_held_out_templates_are_evaluated_on_the_same_records_and_never_trained_on(
    templates: Path, records: FieldRecords
) -> None:
    file = load_templates(templates)
    seen, unseen = records.part("eval", range(6)).evaluation_rows(file, 0, "error")
    assert (seen.label, unseen.label) == ("seen templates", "unseen templates")
    assert [row.number for row in seen.rows] == [row.number for row in unseen.rows] == [1, 2, 3, 4, 5, 6]
    assert seen.forms == {"question": 3, "short": 3}, "an inverted one is not scored"
    assert {str(row.prompt)[:9] for row in unseen.rows} == {"Entailed:"}
    trained = records.training_rows(file, 3, 0, "error")
    assert "unseen" not in trained.forms


def test_a_chat_template_takes_the_prompt_as_a_turn(templates: Path, records: FieldRecords) -> None:
    templates.write_text("chat: true\n" + FILE)
    rows = records.training_rows(load_templates(templates), 1, 0, "error")
    assert all(isinstance(row.prompt, tuple) and row.prompt[0].role == "user" for row in rows.rows)
    assert Message("user", "p0 => h0? {yes or no}") in {
        row.prompt[0]
        for row in records.training_rows(load_templates(templates), 3, 0, "error").rows
        if isinstance(row.prompt, tuple)
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("{premise} =>", "{premis} =>"), "no field 'premis'"),
        (('"1": "yes"', '"2": "yes"'), "field 'label': words has no such value, found '1'"),
    ],
)
def test_a_record_that_a_template_cannot_write_is_named_or_dropped(
    templates: Path, records: FieldRecords, change: tuple[str, str], says: str
) -> None:
    templates.write_text(FILE.replace(*change))
    file = load_templates(templates)
    with pytest.raises(InvalidInputError) as caught:
        records.training_rows(file, 3, 0, "error")
    assert says in caught.value.message
    assert "nli.jsonl:" in caught.value.message
    if "words" in says:
        rows = records.training_rows(file, 3, 0, "drop")
        assert {row.number % 2 for row in rows.rows} == {1}
        assert rows.reading.left_out[0].count == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name: short", "name: question"), "nli.yaml:6:5: templates[1].name: 'question' is another template's"),
        (("held_out: true", "heldout: true"), "nli.yaml:14:5: templates[3].heldout: unknown key; nearest: held_out"),
        (("{premise} => {hypothesis}?", "What is"), "nli.yaml:7:5: templates[1].prompt: not a pattern"),
        (("({label}):", "({premise}):"), "nli.yaml:11:5: templates[2].prompt: it gives the answer away"),
        (
            (' {premise}"\n  - name: unseen', ' {label2}"\n  - name: unseen'),
            "templates[2].inverted: it generates nothing",
        ),
        (("Entailed: {hypothesis}, by {premise}?", "Entailed?"), "templates[3].prompt: it reads no field"),
        (("that {hypothesis}?", "that {hypothesis!r}?"), "templates[0].prompt: not a pattern: 'hypothesis'"),
        (("held_out: true", "held_out: true\n    inverted: true"), "cannot be held out"),
        (("words: {label:", "words: {labl:"), "nli.yaml:1:9: words.labl: no template reads it"),
    ],
)
def test_a_wrong_file_of_templates_is_refused_with_its_line(
    templates: Path, change: tuple[str, str], says: str
) -> None:
    text = FILE.replace(*change)
    assert text != FILE
    if "not a pattern" in says and "What is" in text:
        text = text.replace("{{yes or no}}", "{yes or no}")
    templates.write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        load_templates(templates)
    assert says in caught.value.message


def test_only_held_out_or_inverted_templates_are_refused(templates: Path) -> None:
    start, end = FILE.index("  - name: question"), FILE.index("  - name: turned")
    templates.write_text(FILE[:start] + FILE[end:])
    with pytest.raises(
        InvalidInputError, match=r"generates nothing that the other templates' prompts read|none is left"
    ):
        load_templates(templates)


def test_a_run_reports_seen_and_unseen_templates_apart(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    templates: Path,
    records: FieldRecords,
) -> None:
    plain = make_config(deep_base, "lora", {"r": 4}).as_json()
    plain["data"] |= {
        "train": [{"path": records.uri, "templates": str(templates), "phrasings": 2, "eval_fraction": 0.5}],
        "eval_fraction": 0.1,
        "mixing_maximum": 10,
    }
    manifest = artifacts.read(run(configs.parse(plain), deep_base))
    metrics = {m.name: m for m in manifest.metrics}
    for label in ("seen templates", "unseen templates"):
        assert metrics[f"examples[{records.uri} ({label})]"].value == "6"
    assert metrics["examples"].value == "12"
    assert metrics["loss"].dataset_sha256 == digests.of_file(Path(records.uri))
    trained = next(d for d in manifest.provenance["datasets"] if d["split"] == "train")
    assert trained["templates_sha256"] == digests.of_file(templates)
    assert Counter(trained["forms"]) == Counter({"question": 4, "short": 4, "turned": 4})
    assert "unseen templates" in (configs.parse(plain).output / artifacts.CARD).read_text()


def test_scoring_writes_the_rows_as_the_training_run_did(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    templates: Path,
    records: FieldRecords,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = make_config(deep_base, "lora", {"r": 4}, steps=4).as_json()
    dataset = {"path": records.uri, "templates": str(templates)}
    plain["data"] |= {"train": [dataset], "eval": [dataset], "eval_fraction": 0.1}
    trained = run(configs.parse(plain), deep_base)
    metrics = {m.name: float(m.value) for m in artifacts.read(trained).metrics}
    monkeypatch.setenv("WEFT_HOME", str(deep_base.home.root))
    command = ["eval", str(trained), records.uri, "--templates", str(templates), "--dtype", "float32", "-q"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)
    titles = [f"{records.uri} ({label})" for label in ("seen templates", "unseen templates")]
    assert list(scores["parts"]) == titles
    assert (scores["examples"], [part["examples"] for part in scores["parts"].values()]) == (24, [12, 12])
    for title in titles:
        assert scores["parts"][title]["loss"] == pytest.approx(metrics[f"loss[{title}]"], abs=1e-4)
    assert scores["loss"] == pytest.approx(metrics["loss"], abs=1e-4)
    assert scores["parts"][titles[0]]["loss"] != scores["parts"][titles[1]]["loss"]
    some = CliRunner().invoke(app, [*command, "--rows", "5"])
    assert some.stdout.count("examples") == 3
    assert all(title in some.stdout for title in titles)
    # Without held-out templates there is one score, as of any file.
    templates.write_text(FILE.partition("  - name: unseen")[0])
    whole = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (set(whole), whole["examples"]) == ({"loss", "exact_match", "examples"}, 12)
