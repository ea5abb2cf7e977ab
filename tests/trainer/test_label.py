from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.tiny_models import AddedBase
from tests.trainer.oracles import dense_model
from tests.trainer.prompts import save_prompt
from tests.trainer.reporters import Heard
from weft_client.cli.app import app
from weft_registry.errors import AlreadyExistsError, InvalidInputError
from weft_trainer import label as labelling
from weft_trainer.config import run as configs
from weft_trainer.data.judging import JudgeTemplate, Labels, load_template
from weft_trainer.data.pairs import read_pairs
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.label import Labelled
from weft_trainer.progress import QuietReporter

ROWS = [
    {"prompt": f"What is {i}?", "response_a": f" It is {word}.", "response_b": " No idea."}
    for i, word in enumerate(("oil", "a bank", "the film", "trade", "money", "a ship"))
]
SHORT = JudgeTemplate(prompt="Q: {prompt}\n1: {first}\n2: {second}\nBetter:")


@pytest.fixture
def judge(tiny_base: Callable[..., AddedBase]) -> AddedBase:
    return tiny_base("llama")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "responses.jsonl", ROWS)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(data: Path, judge: AddedBase, **options: Any) -> tuple[Labelled, list[dict[str, Any]]]:
    output = data.with_name("pairs.jsonl")
    output.unlink(missing_ok=True)
    options = {"base": judge.name, "template": SHORT, "dtype": torch.float32, "home": judge.home} | options
    found = labelling.label(data, output, QuietReporter(), **options)
    assert output.exists() == bool(found.written), "what is there is never empty"
    return found, [json.loads(line) for line in output.read_text().splitlines()] if found.written else []


def asked(judge: AddedBase, row: Mapping[str, Any], first: str, second: str) -> float:
    """P(label 1) of one question, by transformers' own model, alone and unpadded."""
    tokenizer = BaseTokenizer(judge.stored.tokenizer_dir, judge.stored.config.eos_token_ids)
    labels = Labels.of(SHORT, tokenizer)
    text = f"Q: {row['prompt'].strip()}\n1: {first.strip()}\n2: {second.strip()}\nBetter:"
    ids = torch.tensor([[*tokenizer.completion(text), *labels.head]])
    with torch.no_grad():
        logits_V = dense_model(judge)(input_ids=ids).logits[0, -1]
    return float(logits_V[list(labels.last)].double().softmax(-1)[0])


def test_the_margin_is_the_mean_of_both_orders_by_transformers(judge: AddedBase, data: Path) -> None:
    found, pairs = labelled(data, judge)
    disagreed = 0
    for row, pair in zip(ROWS, pairs, strict=True):
        ab = asked(judge, row, row["response_a"], row["response_b"])
        ba = asked(judge, row, row["response_b"], row["response_a"])
        share = (ab + 1 - ba) / 2
        winner, loser = ("response_a", "response_b") if share > 0.5 else ("response_b", "response_a")
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (row["prompt"], row[winner], row[loser])
        assert pair["margin"] == pytest.approx(abs(2 * share - 1), abs=1e-4)
        disagreed += (ab > 0.5) == (ba > 0.5)
    assert (found.rows, found.written, found.disagreed) == (6, 6, disagreed)
    assert found.disagreement == disagreed / 6


def test_the_order_of_the_two_answers_decides_nothing(judge: AddedBase, data: Path) -> None:
    _, pairs = labelled(data, judge)
    swapped = [{"prompt": r["prompt"], "response_a": r["response_b"], "response_b": r["response_a"]} for r in ROWS]
    _, others = labelled(write(data, swapped), judge)
    for pair, other in zip(pairs, others, strict=True):
        assert {**pair, "margin": 0} == {**other, "margin": 0}
        assert pair["margin"] == pytest.approx(other["margin"], abs=1e-5)


def test_pairs_below_the_margin_are_left_out_and_counted(judge: AddedBase, data: Path) -> None:
    _, pairs = labelled(data, judge)
    margins = sorted(pair["margin"] for pair in pairs)
    least = (margins[2] + margins[3]) / 2
    found, kept = labelled(data, judge, min_margin=least)
    assert (found.written, found.below_margin) == (3, 3)
    assert kept == [pair for pair in pairs if pair["margin"] >= least]


def test_a_tie_prefers_nobody(judge: AddedBase, data: Path) -> None:
    found, pairs = labelled(write(data, [{"prompt": "Q?", "response_a": "yes", "response_b": "yes"}]), judge)
    assert (pairs, found.written, found.below_margin, found.disagreed) == ([], 0, 1, 1)


def test_a_question_longer_than_the_context_is_left_out_and_counted(judge: AddedBase, data: Path) -> None:
    long = {"prompt": "why " * 400, "response_a": "a", "response_b": "b"}
    found, pairs = labelled(write(data, [long, ROWS[0]]), judge)
    assert (found.rows, found.too_long, found.written) == (2, 1, 1)
    assert pairs[0]["prompt"] == ROWS[0]["prompt"]


def test_what_a_judge_wears_takes_its_share_of_the_context(judge: AddedBase, data: Path, tmp_path: Path) -> None:
    worn = save_prompt(judge, tmp_path / "wide", room=20)
    short = {"prompt": "?", "response_a": "a", "response_b": "b"}
    write(data, [{**short, "prompt": "why " * 20}, short])
    assert labelled(data, judge)[0].too_long == 0
    found, pairs = labelled(data, judge, artifact=worn, template=JudgeTemplate(prompt="{prompt}{first}{second}:"))
    assert found.too_long == 1
    assert [pair["prompt"] for pair in pairs] == ["?"]


def test_conversations_stay_conversations(judge: AddedBase, data: Path) -> None:
    turns = [{"role": "user", "content": "Which?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("oil", "film")]
    _, pairs = labelled(write(data, [{"prompt": turns, "response_a": answers[0], "response_b": answers[1]}]), judge)
    assert pairs[0]["prompt"] == turns
    assert sorted((pairs[0]["chosen"], pairs[0]["rejected"]), key=str) == sorted(answers, key=str)


def test_keys_that_are_not_used_are_reported_and_those_that_say_more_are_refused(
    judge: AddedBase, data: Path, tmp_path: Path
) -> None:
    asked = {"role": "user", "content": "What is it?", "name": "ann", "weight": None}
    row = {
        "prompt": [asked],
        "response_a": [{"role": "assistant", "content": "A film.", "weight": None}],
        "response_b": [{"role": "assistant", "content": "Oil."}],
        "id": 7,
        "source": None,
    }
    heard = Heard()
    output = tmp_path / "pairs.jsonl"
    labelling.label(write(data, [row, ROWS[0]]), output, heard, base=judge.name, template=SHORT, home=judge.home)
    assert "keys not used: id (1 times), messages[].name (1 times)" in heard.messages
    written = json.loads(output.read_text().splitlines()[0])
    assert written["prompt"] == [{"role": "user", "content": "What is it?"}]
    assert {turn["content"] for side in ("chosen", "rejected") for turn in written[side]} == {"A film.", "Oil."}
    call = {**row, "prompt": [{**asked, "tool_calls": [{"id": "a"}]}]}
    with pytest.raises(InvalidInputError, match=r"responses\.jsonl:1: messages: tool_calls: of a turn only content is"):
        labelled(write(data, [call]), judge)


def test_what_is_written_is_what_preference_tuning_reads(judge: AddedBase, data: Path) -> None:
    _, pairs = labelled(data, judge)
    read = read_pairs(data.with_name("pairs.jsonl"), "train")
    assert [chosen.completion for chosen, _ in read.pairs] == [pair["chosen"] for pair in pairs]
    # The margin belongs there.
    assert read.reading.unused == ()


def test_a_judge_may_wear_an_artifact(
    deep_base: AddedBase,
    make_config: Callable[..., configs.TrainConfig],
    run: Callable[[configs.TrainConfig, AddedBase], Path],
    data: Path,
) -> None:
    worn = run(make_config(deep_base, "qalora", {"r": 2}, steps=20), deep_base)
    _, alone = labelled(data, deep_base)
    _, wearing = labelled(data, deep_base, artifact=worn)
    _, merged = labelled(data, deep_base, artifact=worn, merged=True)
    assert [pair["margin"] for pair in alone] != [pair["margin"] for pair in wearing]
    for one, other in zip(wearing, merged, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-3)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "response_a": "b"}, r'expected \{"prompt", "response_a", "response_b"\}'),
        ({"prompt": "a", "response_a": "b", "response_b": " "}, "response_b: expected text that is not empty"),
        ({"prompt": [], "response_a": [], "response_b": []}, "prompt: expected a list of"),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "response_a": [{"role": "user", "content": "b"}],
                "response_b": [{"role": "assistant", "content": "b"}],
            },
            "response_a: expected one message, the assistant's",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_its_line(
    judge: AddedBase, data: Path, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"responses\.jsonl:2: {says}"):
        labelled(write(data, [ROWS[0], row]), judge)


def test_nothing_that_is_there_is_overwritten(judge: AddedBase, data: Path) -> None:
    output = data.with_name("pairs.jsonl")
    output.write_text("mine")
    with pytest.raises(AlreadyExistsError, match="is there already"):
        labelling.label(data, output, QuietReporter(), base=judge.name, home=judge.home)
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt: '{prompt} {first}'", r"judge.yaml:1:1: prompt: expected the field \{second\} once"),
        ("prompt: '{prompt} {first} {second} {third}'", "'third' is no field of a pair"),
        ("labels: [' A']", r"judge.yaml:1:1: labels: expected two different texts"),
        ("label: [' A', ' B']", "label: unknown key; nearest: labels"),
    ],
)
def test_a_wrong_template_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InvalidInputError, match=says):
        load_template(path)


def test_labels_of_different_length_are_refused(judge: AddedBase) -> None:
    tokenizer = BaseTokenizer(judge.stored.tokenizer_dir, judge.stored.config.eos_token_ids)
    with pytest.raises(InvalidInputError, match="differ in the last one only"):
        Labels.of(JudgeTemplate(labels=(" first", " second and more")), tokenizer)


def test_the_command_reports_what_it_kept(judge: AddedBase, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_HOME", str(judge.home.root))
    output = data.with_name("out.jsonl")
    arguments = ["label", str(data), "--judge", judge.name, "-o", str(output), "--dtype", "float32", "-q", "--json"]
    template = data.with_name("judge.yaml")
    template.write_text(json.dumps({"prompt": SHORT.prompt}))
    result = CliRunner().invoke(app, [*arguments, "--template", str(template)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["rows"], found["written"]) == (6, len(output.read_text().splitlines()))
    assert 0 <= found["disagreement"] <= 1
    refused = CliRunner().invoke(app, [*arguments[:3], "+x", *arguments[4:]])
    assert refused.exit_code == 2
    assert "is no BASE or BASE+ARTIFACT" in refused.output


TIE = {"prompt": "Q?", "response_a": "yes", "response_b": "yes"}
LONG = {"prompt": "why " * 400, "response_a": "a", "response_b": "b"}


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (
            [TIE] * 3,
            [],
            "of 3 pairs the judge prefers no answer at all, and judges 3 of them otherwise in the other order",
        ),
        (ROWS, ["--min-margin", "1"], "prefers no answer by 1 or more"),
        (ROWS, ["--min-margin", "1"], "; lower --min-margin (the margin is 0."),
        ([LONG] * 2, [], "none of the 2 pairs fits the judge's context; shorten"),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_fails_and_says_what_to_try_where_nothing_is_left(
    judge: AddedBase,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    options: list[str],
    says: str,
    as_json: bool,
) -> None:
    monkeypatch.setenv("WEFT_HOME", str(judge.home.root))
    output, template = data.with_name("out.jsonl"), data.with_name("judge.yaml")
    template.write_text(json.dumps({"prompt": SHORT.prompt}))
    command = [
        "label",
        str(write(data, rows)),
        "--judge",
        judge.name,
        "-o",
        str(output),
        "--template",
        str(template),
        "-q",
    ]
    result = CliRunner().invoke(app, [*command, *options, *(["--json"] if as_json else []), "--dtype", "float32"])
    assert result.exit_code == 1
    assert f"error: {data}: " in result.stderr
    assert says in result.stderr
    assert "nothing was written" in result.stderr
    assert not output.exists()
    if as_json:
        found = json.loads(result.stdout)
        assert (found["output"], found["written"], found["rows"]) == (None, 0, len(rows))


def test_the_command_succeeds_where_some_pairs_are_left(
    judge: AddedBase, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_HOME", str(judge.home.root))
    output = data.with_name("out.jsonl")
    arguments = ["label", str(write(data, [LONG, *ROWS])), "--judge", judge.name, "-o", str(output), "-q"]
    template = data.with_name("judge.yaml")
    template.write_text(json.dumps({"prompt": SHORT.prompt}))
    result = CliRunner().invoke(app, [*arguments, "--template", str(template), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert "1 do not fit" in result.stdout
    assert len(output.read_text().splitlines()) == 6
