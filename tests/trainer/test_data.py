from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import AddedBase
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from weft_server.tokenizer import Tokenizer
from weft_trainer.config.data import FORMATS
from weft_trainer.config.run import TrainConfig, parse
from weft_trainer.data.dataset import Example
from weft_trainer.data.formats import READERS, RowError, read_row
from weft_trainer.data.prepare import prepare
from weft_trainer.data.rows import Message, Row, Rows, choose, hold_out, read_rows
from weft_trainer.data.tokenization import BaseTokenizer, tokenize


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(tiny_base: Callable[..., AddedBase]) -> BaseTokenizer:
    return BaseTokenizer(tiny_base("llama").stored.tokenizer_dir)


@pytest.fixture
def with_template(tmp_path: Path, tiny_source: Callable[..., Path]) -> Callable[[str | None], BaseTokenizer]:
    """`with_template(text)`: the tiny base's tokenizer with that chat template; None: without any."""

    def make(template: str | None) -> BaseTokenizer:
        directory = tmp_path / "tokenizer"
        shutil.copytree(tiny_source("llama"), directory, dirs_exist_ok=True)
        (directory / "chat_template.jinja").unlink(missing_ok=True)
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        if template is not None:
            settings["chat_template"] = template
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return BaseTokenizer(directory)

    return make


def test_both_forms_are_read_and_the_file_is_hashed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": " b"}, {"messages": turns})
    rows = read_rows(path, "train")
    assert rows.rows == (Row("a", " b"), Row((Message("user", "hi"),), "yes"))
    assert rows.sha256 == digests.of_file(path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a"}, "found the keys ['prompt']"),
        ({"prompt": "a", "completion": "b", "messages": []}, "fit prompt-completion and messages"),
        ({"instruction": "a", "output": 3}, "output: expected text that is not empty, found 3"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "from: 'bot' is not one of human"),
        ({"conversations": [{"from": "gpt"}]}, "conversations: expected"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "from: ['human'] is not one of human"),
        ({"conversations": [{"from": "human", "value": ""}]}, "conversations: value: expected text that is not empty"),
        ({"messages": "hi"}, "messages: expected a list, found str"),
        ({"prompt": "a", "completion": ""}, "completion: expected text that is not empty"),
        ({"prompt": 1, "completion": "b"}, "prompt: expected text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "at least two"),
        ({"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]}, "role: 'bot'"),
        ({"messages": [{"role": "assistant", "content": "y"}, {"role": "user", "content": "x"}]}, "message is user's"),
        ([1], "of no object"),
        ({"text": "a", "label": 1}, "text stands beside label: data.format: text learns the text alone"),
        ({"text": ""}, "text: expected text that is not empty"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path: Path, row: object, says: str) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(InvalidInputError) as caught:
        read_rows(path, "train")
    assert f"{path}:2" in caught.value.message
    assert says in caught.value.message


FORMS: dict[str, tuple[dict[str, Any], Row]] = {
    "prompt-completion": ({"prompt": "a", "completion": " b"}, Row("a", " b")),
    "messages": (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "name": None}]},
        Row((Message("user", "hi"),), "yes"),
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["q", "a"]], "system": "Be brief."},
        Row(
            (
                Message("system", "Be brief."),
                Message("user", "q"),
                Message("assistant", "a"),
                Message("user", "Add.\n1 2"),
            ),
            "3",
        ),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}],
            "system": "Be brief.",
        },
        Row((Message("system", "Be brief."), Message("user", "hi")), "yes"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", ["JSONL", "JSON array", "Parquet"])
def test_every_format_is_detected_in_every_container(tmp_path: Path, form: str, container: str) -> None:
    value, wanted = FORMS[form]
    path = tmp_path / "data"
    if container == "Parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([value | {"id": 1}] * 2), path)
    elif container == "JSONL":
        write(path, value | {"id": 1}, value | {"id": 2})
    else:
        path.write_text(json.dumps([value | {"id": 1}, value | {"id": 2}], indent=1))
    rows = read_rows(path, "train")
    assert rows.rows == (wanted, wanted)
    assert (rows.reading.container, rows.forms) == (container, {form: 2})
    assert rows.reading.unused == (("id", 2),)
    assert read_rows(path, "train", form).rows == rows.rows


def test_a_forced_format_refuses_other_records(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b", "messages": []})
    assert read_rows(path, "train", "prompt-completion").rows == (Row("a", "b"),)
    with pytest.raises(InvalidInputError, match=r"d\.jsonl:1: expected alpaca, which has instruction, output"):
        read_rows(path, "train", "alpaca")


def test_conversational_prompts_and_completions_are_joined(tmp_path: Path) -> None:
    record = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
    assert read_rows(write(tmp_path / "d.jsonl", record), "train").rows == (Row((Message("user", "q"),), "a"),)


TURNS = {
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
}


def with_key(form: str, name: str, value: object) -> dict[str, Any]:
    """A record of a conversation whose last turn has one key more."""
    *turns, last = TURNS[form]
    return {form: [*turns, last | {name: value}]}


@pytest.mark.parametrize("form", TURNS)
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("weight", 0, "data.loss_on learns all of the assistant's, or the last one: remove the key, found 0 at 1"),
        ("loss", False, "turns are not weighted one by one"),
        ("train", True, "turns are not weighted one by one"),
        ("tool_calls", [{"id": 1}], "is read, a text: write it there, or remove it, found [{'id': 1}] at 1"),
        ("reasoning_content", "So.", "is read, a text"),
    ],
)
def test_a_key_of_a_turn_that_says_what_is_learnt_is_refused(
    tmp_path: Path, form: str, name: str, value: object, says: str
) -> None:
    path = write(tmp_path / "d.jsonl", {form: TURNS[form]}, with_key(form, name, value))
    with pytest.raises(InvalidInputError) as caught:
        read_rows(path, "train", invalid="error")
    assert caught.value.message.startswith(f"{path}:2: {form}: {name}: ")
    assert says in caught.value.message
    assert len(read_rows(path, "train", invalid="drop").rows) == 1


@pytest.mark.parametrize("form", TURNS)
def test_other_keys_of_turns_are_reported_once_a_record(tmp_path: Path, form: str, tokenizer: BaseTokenizer) -> None:
    more: dict[str, Any] = {"markdown": "*", "tool_calls": [], "name": None}
    turns = [turn | more for turn in TURNS[form]]
    rows = read_rows(write(tmp_path / "d.jsonl", {form: turns, "id": 1}, {form: TURNS[form]}), "train")
    assert len(rows.rows) == 2
    assert rows.reading.unused == (("id", 1), (f"{form}[].markdown", 1), (f"{form}[].tool_calls", 1))
    assert f"keys not used: id (1 times), {form}[].markdown (1 times)" in tokenize(rows, tokenizer, 256).describe()


def test_keys_of_turns_in_lists_of_prompt_and_completion_are_named_by_their_list() -> None:
    asked, answer = ([turn] for turn in TURNS["messages"])
    record = {"prompt": [asked[0] | {"name": "Ann"}], "completion": answer}
    assert read_row(record, "prompt-completion")[1] == ["prompt[].name"]
    with pytest.raises(RowError, match=r"^completion: mask: .*, found 1 at 0$"):
        read_row({"prompt": asked, "completion": [answer[0] | {"mask": 1}]}, "prompt-completion")


def test_records_of_an_array_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('[\n{"prompt": "a",\n "completion": "b"},\n\n{"prompt": "a"}]')
    with pytest.raises(InvalidInputError, match=r"d\.json:5: expected"):
        read_rows(path, "train")
    for text, says in (
        ('[{"prompt": "a"', r"d\.json:1: not a JSON array"),
        ('[\n{"prompt": "a",\n "completion" 1}]', r"d\.json:3: not a JSON array: .* at column 15"),
        ("[1 2]", "expected ',' or ']'"),
        ("[1] 2", "something follows"),
        ("[]", "no examples"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=says):
            read_rows(path, "train")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "d").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InvalidInputError, match=r"d: not Parquet, or cut short \(.*\): write or copy it again"):
        read_rows(tmp_path / "d", "train")


def test_parquet_without_rows_or_with_a_text_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    empty = pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in ("prompt", "completion")})
    parquet.write_table(empty, tmp_path / "empty")
    with pytest.raises(InvalidInputError, match=r"empty: no examples: Parquet without a record; see what wrote it"):
        read_rows(tmp_path / "empty", "train")
    # Arrow does not look at what it is given as text.
    offsets, letters = pyarrow.array([0, 1, 2], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xff")
    texts = pyarrow.StringArray.from_buffers(2, offsets, letters)
    parquet.write_table(pyarrow.table({"prompt": ["p", "q"], "completion": texts}), tmp_path / "d")
    with pytest.raises(InvalidInputError, match=r"d: row 2: not UTF-8: write its texts as that"):
        read_rows(tmp_path / "d", "train")
    assert [row.completion for row in read_rows(tmp_path / "d", "train", invalid="drop").rows] == ["a"]


def test_parquet_without_pyarrow_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "d").write_bytes(b"PAR1")
    with pytest.raises(UnsupportedError, match="needs pyarrow"):
        read_rows(tmp_path / "d", "train")


def test_dropped_records_are_counted_by_reason_with_their_lines(tmp_path: Path, tokenizer: BaseTokenizer) -> None:
    good = {"prompt": "the old cat", "completion": " yes"}
    path = tmp_path / "d.jsonl"
    lines = [good, {"prompt": "x"}, good | {"completion": ""}, good, good | {"completion": 7}, good | {"source": "web"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{oops\n")
    rows = read_rows(path, "train", invalid="drop")
    assert [row.number for row in rows.rows] == [1, 4, 6]
    assert [(group.count, group.numbers) for group in rows.reading.left_out] == [(2, (3, 5)), (1, (2,)), (1, (7,))]
    text = tokenize(rows, tokenizer, 64).describe()
    assert "2 left out, completion: expected text that is not empty: lines 3, 5" in text
    assert "JSONL; prompt-completion 3" in text
    assert "keys not used: source (1 times)" in text
    assert tokenize(rows, tokenizer, 64).provenance()["left_out"] == 4
    with pytest.raises(InvalidInputError, match=r"d\.jsonl:2: .*data\.invalid=drop leaves such records out"):
        read_rows(path, "train", invalid="error")
    with pytest.raises(InvalidInputError, match="no examples: expected"):
        read_rows(write(tmp_path / "none.jsonl", {"x": 1}, {"y": 1}), "train", invalid="drop")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a \\ud83d b", "completion": "c"}', r"d\.jsonl:1: not text: \\ud83d is half of a character"),
        ('[{"prompt": "a", "completion": "\\ude00"}]', r"d\.jsonl:1: not text: \\ude00 is half of a character"),
        ('{"prompt": ' + "[" * 100_000, r"d\.jsonl:1: not JSON"),
        ("[" * 100_000, r"d\.jsonl:1: not a JSON array"),
        ('\n{"prompt": "a" 1}', r"d\.jsonl:2: not JSON: Expecting ',' delimiter at column 16$"),
        ('\n{"prompt": "a\tb"}', r"d\.jsonl:2: not JSON: Invalid control character at column 14$"),
        ('\n{"prompt": "a\0"}', r"d\.jsonl:2: a NUL byte: the file is damaged, or no text; write it again$"),
        ('[\n{"prompt": "a\0"}]', r"d\.jsonl:2: a NUL byte"),
        ('[\n1,\n{"prompt": "\udce4"}]', r"d\.jsonl:3: not UTF-8: save the file as that$"),
        ("", r"d\.jsonl: no examples: the file is empty; see what wrote it"),
        ("\n\n", r"d\.jsonl: no examples: the file is empty"),
        ("[ ]", r"d\.jsonl: no examples: JSON array without a record"),
        ("\x1f\udc8b\b", r"d\.jsonl:1: neither Parquet nor UTF-8, but compressed by gzip: unpack it"),
        ("\udcff\udcfe{\0", r"d\.jsonl:1: neither Parquet nor UTF-8, but UTF-16: save it as UTF-8"),
    ],
)
def test_what_no_tokenizer_or_parser_can_read_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInputError, match=says):
        read_rows(path, "train")


def test_a_line_that_is_no_text_is_named_or_left_out_as_others_are(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = b'{"prompt": "a", "completion": "b"}\n'
    path.write_bytes(
        b"\xef\xbb\xbf" + good + good.replace(b"a", b"\xe4") + good + good.replace(b"b", b"\0") + b"\0\0\0"
    )
    with pytest.raises(
        InvalidInputError, match=r"d\.jsonl:2: not UTF-8: .*; data\.invalid=drop leaves such records out"
    ):
        read_rows(path, "train", invalid="error")
    rows = read_rows(path, "train", invalid="drop")
    assert [row.number for row in rows.rows] == [1, 3]
    assert [(group.reason[:9], group.numbers) for group in rows.reading.left_out] == [
        ("a NUL byt", (4, 5)),
        ("not UTF-8", (2,)),
    ]


def test_a_directory_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read: Is a directory; give a file of records"):
        read_rows(tmp_path, "train")


def test_a_character_that_json_escapes_in_two_halves_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "\U0001f600", "completion": " b"})
    assert "\\ud83d\\ude00" in path.read_text()
    assert read_rows(path, "train").rows == (Row("\U0001f600", " b"),)


def test_only_who_can_drop_records_is_told_that_they_can_be(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": " b"}, {"prompt": 3})
    with pytest.raises(InvalidInputError, match=r"data\.invalid=drop"):
        read_rows(path, "train", invalid="error")
    with pytest.raises(InvalidInputError) as caught:
        read_rows(path, "eval")
    assert "data.invalid" not in caught.value.message


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_rows(tmp_path / "none.jsonl", "train")
    with pytest.raises(InvalidInputError, match="no examples"):
        read_rows(write(tmp_path / "empty.jsonl"), "train")


def test_holding_out_depends_on_the_seed_alone(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d.jsonl", *({"prompt": f"{i}", "completion": "b"} for i in range(20))), "train")
    train, held = hold_out(rows, 0.25, seed=3)
    assert (len(train.rows), len(held.rows), held.split) == (15, 5, "eval")
    assert set(train.rows) | set(held.rows) == set(rows.rows)
    assert hold_out(rows, 0.25, seed=3) == (train, held)
    assert hold_out(rows, 0.25, seed=4)[1] != held
    assert (train.forms, held.forms) == ({"prompt-completion": 15}, {"prompt-completion": 5})
    assert len(choose(rows, 7, seed=0).rows) == 7
    with pytest.raises(InvalidInputError, match="holds out 0"):
        hold_out(rows, 0.01, seed=0)


def test_prompt_tokens_are_the_servers(tiny_base: Callable[..., AddedBase], tokenizer: BaseTokenizer) -> None:
    server = Tokenizer(tiny_base("llama").stored.tokenizer_dir)
    assert tokenizer.prompt(Row("Oil prices rose:\n", " x")) == server.encode("Oil prices rose:\n")
    turns = (Message("system", "Be brief."), Message("user", "hi there"))
    assert tokenizer.prompt(Row(turns, "x")) == server.encode_chat([(m.role, m.content) for m in turns])


def test_the_completion_is_tokenized_alone_and_ends_with_eos(tmp_path: Path, tokenizer: BaseTokenizer) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "Oil pri", "completion": "ces rose"})
    (example,) = tokenize(read_rows(path, "train"), tokenizer, 64).examples
    prompt, completion = tokenizer.completion("Oil pri"), tokenizer.completion("ces rose")
    assert list(example.ids) == [*prompt, *completion, tokenizer.eos]
    assert example.prompt_length == len(prompt)
    assert [*prompt, *completion] != tokenizer.completion("Oil prices rose"), "here joining must matter"


def test_long_examples_lose_the_start_of_their_prompt_and_are_counted(tmp_path: Path, tokenizer: BaseTokenizer) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"prompt": "the old cat sleeps " * 8, "completion": " yes"},
        {"prompt": "q", "completion": "wonderfully disappointing " * 8},
        {"prompt": "q", "completion": " yes"},
    )
    dataset = tokenize(read_rows(path, "train"), tokenizer, 12)
    assert (len(dataset.examples), dataset.truncated, dataset.dropped) == (2, 1, 1)
    assert dataset.rows.forms == dataset.provenance()["forms"] == {"prompt-completion": 2}
    assert "(JSONL; prompt-completion 2)" in dataset.describe()
    assert len(dataset.examples[0].ids) == 12
    assert "1 left out" in dataset.describe()
    whole = tokenizer.completion("the old cat sleeps " * 8)
    kept = dataset.examples[0].prompt_length
    assert list(dataset.examples[0].ids[:kept]) == whole[-kept:]
    with pytest.raises(InvalidInputError, match="max_length"):
        tokenize(choose(read_rows(path, "train"), 1, seed=5), tokenizer, 2)


@pytest.mark.parametrize("max_length", [2, 5, 11, 512])
def test_of_a_plain_text_every_token_but_the_first_is_learnt_once(
    tmp_path: Path, tokenizer: BaseTokenizer, max_length: int
) -> None:
    texts = ["The old cat sleeps on the warm stone. " * 3, "a"]
    path = write(tmp_path / "d.jsonl", *({"text": text} for text in texts))
    dataset = tokenize(read_rows(path, "train"), tokenizer, max_length)
    whole = [[*tokenizer.prompt(Row(None, text)), *tokenizer.completion(text), tokenizer.eos] for text in texts]
    learnt = [example.ids[start:end] for example in dataset.examples for start, end in example.spans]
    assert [token for part in learnt for token in part] == [token for ids in whole for token in ids[1:]]
    assert all(2 <= len(example.ids) <= max_length for example in dataset.examples)
    for before, after in pairwise(dataset.examples):
        assert after.ids[0] == before.ids[-1] or before.ids[-1] == tokenizer.eos
    assert dataset.cut_texts == sum(len(ids) > max_length for ids in whole)
    assert ("several examples: over data.max_length" in dataset.describe()) == (dataset.cut_texts > 0)
    assert dataset.rows.forms == {"text": 2}


def test_what_a_tokenizer_puts_before_a_text_is_read_and_not_learnt() -> None:
    rows = Rows("d.jsonl", "", "train", (Row(None, "bcdef"),))
    examples = tokenize(rows, Lettered(), 4).examples
    assert [(example.ids, example.prompt_length) for example in examples] == [
        ((*b"<", *b"bcd"), 1),
        ((*b"def", 0), 1),
    ]


class Lettered:
    """Bytes for tokens, and "<" before every prompt."""

    eos = 0

    def prompt(self, row: Row) -> list[int]:
        return [*b"<", *(row.prompt.encode() if isinstance(row.prompt, str) else b"")]

    def completion(self, text: str) -> list[int]:
        return [*text.encode()]


def test_plain_text_beside_other_keys_is_read_where_it_is_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"text": "a b", "url": "x"})
    rows = read_rows(path, "train", "text")
    assert rows.rows == (Row(None, "a b"),)
    assert rows.reading.unused == (("url", 1),)
    # A file of another format that has the whole example as text besides.
    path = write(tmp_path / "e.jsonl", {"instruction": "a", "output": "b", "text": "a b"})
    rows = read_rows(path, "train")
    assert (rows.forms, rows.reading.unused) == ({"alpaca": 1}, (("text", 1),))


def test_alpaca_without_a_chat_template_is_stanfords_prompt(
    tmp_path: Path, with_template: Callable[[str | None], BaseTokenizer], tokenizer: BaseTokenizer
) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"instruction": "Add.", "input": "", "output": "3"},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
    )
    rows = read_rows(path, "train").rows
    chat = tokenizer.prompt(rows[1])
    assert chat == tokenizer.prompt(Row((Message("user", "Add.\n1 2"),), "3"))
    plain = with_template(None)
    expected = "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    assert str(rows[1].plain).endswith(expected)
    assert plain.prompt(rows[1]) == plain.completion(str(rows[1].plain))
    assert "### Input" not in str(rows[0].plain)


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "this base has no chat template: write prompt and completion instead of messages"),
        (NO_SYSTEM, "the base's chat template refuses the conversation: no system here"),
    ],
)
@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_a_conversation_that_the_base_cannot_read_is_named_or_left_out(
    tmp_path: Path, with_template: Callable[[str | None], BaseTokenizer], template: str | None, says: str, loss_on: str
) -> None:
    encoder = with_template(template)
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": " b"}, {"messages": TALK}, {"prompt": "a"})
    rows = read_rows(path, "train", invalid="drop")
    with pytest.raises(InvalidInputError) as caught:
        tokenize(rows, encoder, 256, loss_on, "error")
    assert caught.value.message.startswith(f"{path}:2: {says}")
    assert caught.value.message.endswith("; data.invalid=drop leaves such records out")
    with pytest.raises(InvalidInputError) as caught:
        tokenize(rows, encoder, 256)
    assert "data.invalid" not in caught.value.message
    found = tokenize(rows, encoder, 256, loss_on, "drop")
    assert (len(found.examples), found.rows.forms) == (1, {"prompt-completion": 1})
    assert f"1 left out, {says}" in found.describe()
    assert found.provenance()["left_out"] == 2
    alone = read_rows(write(tmp_path / "e.jsonl", {"messages": TALK}), "train")
    with pytest.raises(InvalidInputError, match=rf"^{tmp_path}/e\.jsonl: no examples: {says}"):
        tokenize(alone, encoder, 256, loss_on, "drop")


def test_a_run_leaves_out_what_its_base_cannot_read(
    tmp_path: Path,
    with_template: Callable[[str | None], BaseTokenizer],
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
) -> None:
    plain = make_config(deep_base, "lora", {"r": 4}).as_json()
    rows = [{"prompt": f"{i}", "completion": " b"} if i % 4 else {"messages": TALK} for i in range(40)]
    plain["data"]["train"] = str(write(tmp_path / "d.jsonl", *rows))
    encoder = with_template(None)
    with pytest.raises(InvalidInputError, match=r"d\.jsonl:\d+: this base has no chat template"):
        prepare(parse(plain), encoder)
    plain["data"]["invalid"] = "drop"
    data = prepare(parse(plain), encoder)
    assert sum(len(dataset.examples) for dataset in data.datasets) == 30
    assert sum(dataset.provenance()["left_out"] for dataset in data.datasets) == 10


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "cat or fox"},
    {"role": "assistant", "content": "the quick fox"},
]


def learnt(example: Example) -> list[list[int]]:
    return [list(example.ids[start:end]) for start, end in example.spans]


def test_every_answer_is_learnt_exactly_as_if_it_were_the_last(tmp_path: Path, tokenizer: BaseTokenizer) -> None:
    rows = read_rows(write(tmp_path / "d.jsonl", {"messages": TALK}), "train")
    (last,) = tokenize(rows, tokenizer, 256).examples
    (both,) = tokenize(rows, tokenizer, 256, "all").examples
    first = tokenizer.prompt(Row(tuple(Message(**turn) for turn in TALK[:2]), "yes"))
    assert both.ids == last.ids
    assert learnt(last) == [[*tokenizer.completion("the quick fox"), tokenizer.eos]]
    assert learnt(both) == [[*tokenizer.completion("yes"), tokenizer.eos], *learnt(last)]
    assert list(both.ids[: both.spans[0][0]]) == first
    assert (both.completion_length, both.prompt_length) == (sum(map(len, learnt(both))), last.prompt_length)


def test_answers_that_do_not_continue_each_other_become_examples_of_their_own(
    tmp_path: Path, tokenizer: BaseTokenizer
) -> None:
    class Forgetful(BaseTokenizer):
        """A template that writes earlier answers in another way, as those do that drop thoughts."""

        def __init__(self) -> None:
            self.__dict__ = tokenizer.__dict__

        def prompt(self, row: Row) -> list[int]:
            turns = [m if m.role != "assistant" else Message(m.role, m.content[1:]) for m in row.prompt]  # type: ignore
            return super().prompt(Row(tuple(turns), ""))

    rows = read_rows(write(tmp_path / "d.jsonl", {"messages": TALK}), "train")
    found = tokenize(rows, Forgetful(), 256, "all")
    assert [learnt(example) for example in found.examples] == [
        [[*tokenizer.completion("yes"), tokenizer.eos]],
        [[*tokenizer.completion("the quick fox"), tokenizer.eos]],
    ]
    assert "1 conversations are several examples" in found.describe()


def test_a_shortened_conversation_loses_the_answers_that_are_cut_into(tmp_path: Path, tokenizer: BaseTokenizer) -> None:
    rows = read_rows(write(tmp_path / "d.jsonl", {"messages": TALK}), "train")
    (whole,) = tokenize(rows, tokenizer, 256, "all").examples
    start, _ = whole.spans[0]
    (kept,) = tokenize(rows, tokenizer, len(whole.ids) - start + 1, "all").examples
    assert learnt(kept) == learnt(whole)
    short = tokenize(rows, tokenizer, len(whole.ids) - start, "all")
    assert learnt(short.examples[0]) == learnt(whole)[1:]
    assert short.truncated_at == (1,)


def test_the_end_token_is_one_that_a_server_stops_at(tiny_base: Callable[..., AddedBase]) -> None:
    directory = tiny_base("llama").stored.tokenizer_dir
    assert BaseTokenizer(directory, (2, 0)).eos == 2
    assert BaseTokenizer(directory, (7,)).eos == 7


def test_every_format_that_a_configuration_may_name_is_read() -> None:
    assert set(FORMATS) == READERS.keys()
