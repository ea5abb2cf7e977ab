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
from weft_trainer.data.phrasing import FieldRecords
from weft_trainer.data.prepare import prepare
from weft_trainer.data.records import read_records
from weft_trainer.data.rows import hold_out
from weft_trainer.data.templates import load_templates
from weft_trainer.data.tokenization import BaseTokenizer, tokenize

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
        (('"1": "yes"', '"2": "yes"'), "field 'label': words has only 0, 2, found 1"),
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
        (('"1": "yes"', '"true": "yes", yes: "so"'), "words.label.true: said twice, as a text and as a value"),
        (("words:", "url: a\nwords:"), "nli.yaml:1:1: url: unknown key; known: templates, words, chat"),
        (("words:", "sha256: a\nwords:"), "nli.yaml:1:1: sha256: unknown key; known: templates, words, chat"),
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


def written(path: Path, words: str, *values: object) -> list[str]:
    """What the values of a field become by these words, in YAML."""
    template = '{name: a, prompt: "{id}", completion: "{label}"}'
    (path / "t.yaml").write_text(f"words: {{label: {words}}}\ntemplates: [{template}]\n")
    (path / "d.jsonl").write_text("".join(json.dumps({"id": 1, "label": value}) + "\n" for value in values))
    file = read_records(path / "d.jsonl")
    rows = FieldRecords(file, file.records, "train").training_rows(load_templates(path / "t.yaml"), 1, 0, "error")
    return [row.completion for row in rows.rows]


@pytest.mark.parametrize(
    ("words", "values", "wanted"),
    [
        ('{true: "yes", false: "no"}', (True, False, "true"), ["yes", "no", "yes"]),
        ('{"true": "yes", "false": "no"}', (True, False), ["yes", "no"]),
        ('{0: "no", 1: "yes"}', (0, 1, 0.0, 1.0, "1"), ["no", "yes", "no", "yes", "yes"]),
        ('{0.0: "no", 1.0: "yes", 0.5: "perhaps"}', (0, 1.0, 0.5, "1.0"), ["no", "yes", "perhaps", "yes"]),
        ('{null: "unknown", 1: "yes"}', (None, 1), ["unknown", "yes"]),
    ],
)
def test_words_are_found_by_values_as_json_has_them(
    tmp_path: Path, words: str, values: tuple[object, ...], wanted: list[str]
) -> None:
    assert written(tmp_path, words, *values) == wanted


@pytest.mark.parametrize(
    ("words", "value", "says"),
    [
        ('{0: "no", 1: "yes"}', True, "field 'label': words has only 0, 1, found True"),
        ('{true: "yes", false: "no"}', 1, "field 'label': words has only true, false, found 1"),
        ('{yes: "ja", no: "nein"}', "yes", "only true, false (without quotes, YAML's yes and no are true and false)"),
        ("{" + ", ".join(f'{i}: "{i}"' for i in range(12)) + "}", 12, "only 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., found"),
        ('{1: "yes"}', None, "no field 'label', which a template reads"),
    ],
)
def test_a_value_without_a_word_is_told_the_words_there_are(
    tmp_path: Path, words: str, value: object, says: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        written(tmp_path, words, value)
    assert says in caught.value.message


def test_fields_that_no_template_reads_are_reported_once_a_file(
    templates: Path, records: FieldRecords, tiny_base: Callable[..., AddedBase]
) -> None:
    file = load_templates(templates)
    # `choices` is read by a template, though not by those that are held out.
    assert records.training_rows(file, 1, 0, "error").reading.unused == (("id", 12),)
    training, held_out = hold_out(records, 0.5, 0)
    rows = training.training_rows(file, 1, 0, "error")
    assert rows.reading.unused == (("id", 12),), "of the whole file, as with other formats"
    assert [part.reading.unused for part in held_out.evaluation_rows(file, 0, "error")] == [(), ()]
    alone = FieldRecords(records.file, records.records, "eval").evaluation_rows(file, 0, "error")
    assert [part.reading.unused for part in alone] == [(("id", 12),), ()]
    encoder = BaseTokenizer(tiny_base("llama").stored.tokenizer_dir)
    assert "keys not used: id (12 times)" in tokenize(rows, encoder, 512).describe()


def test_a_file_under_two_files_of_templates_has_two_scores(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    tmp_path: Path,
    templates: Path,
    records: FieldRecords,
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text('templates: [{name: b, prompt: "{hypothesis}", completion: " {label}"}]')
    plain = make_config(deep_base, "lora", {"r": 4}, steps=2).as_json()
    listed = [{"path": records.uri, "templates": str(path), "eval_fraction": 0.5} for path in (templates, other)]
    plain["data"] |= {"train": listed, "eval_fraction": 0.1, "mixing_maximum": 10}
    config = configs.parse(plain)
    data = prepare(config, BaseTokenizer(deep_base.stored.tokenizer_dir))
    assert [dataset.rows.title for dataset in data.training] == [f"{records.uri} with {p}" for p in (templates, other)]
    assert f"of {records.uri} with {other}" in data.notes[0]
    metrics = {metric.name: metric.value for metric in artifacts.read(run(config, deep_base)).metrics}
    titles = [
        f"{records.uri} with {templates} (seen templates)",
        f"{records.uri} with {templates} (unseen templates)",
        f"{records.uri} with {other} (seen templates)",
    ]
    assert [name for name in metrics if name.startswith("examples[")] == [f"examples[{title}]" for title in titles]
    assert (metrics["examples"], *(metrics[f"examples[{title}]"] for title in titles)) == ("18", "6", "6", "6")


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
