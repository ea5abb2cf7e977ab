from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import AddedBase
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_server.tokenizer import Tokenizer
from weft_trainer.data import BaseTokenizer, tokenize
from weft_trainer.rows import Message, Row, choose, hold_out, read_rows


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(tiny_base: Callable[..., AddedBase]) -> BaseTokenizer:
    return BaseTokenizer(tiny_base("llama").stored.tokenizer_dir)


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
        ({"prompt": "a", "completion": ""}, "completion: expected text that is not empty"),
        ({"prompt": 1, "completion": "b"}, "prompt: expected text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "at least two"),
        ({"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]}, "role: 'bot'"),
        ({"messages": [{"role": "assistant", "content": "y"}, {"role": "user", "content": "x"}]}, "message is user's"),
        ([1], "of no object"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path: Path, row: object, says: str) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(InvalidInputError) as caught:
        read_rows(path, "train")
    assert f"{path}:2" in caught.value.message
    assert says in caught.value.message


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
    assert len(dataset.examples[0].ids) == 12
    assert "1 left out" in dataset.describe()
    whole = tokenizer.completion("the old cat sleeps " * 8)
    kept = dataset.examples[0].prompt_length
    assert list(dataset.examples[0].ids[:kept]) == whole[-kept:]
    with pytest.raises(InvalidInputError, match="max_length"):
        tokenize(choose(read_rows(path, "train"), 1, seed=5), tokenizer, 2)


def test_the_end_token_is_one_that_a_server_stops_at(tiny_base: Callable[..., AddedBase]) -> None:
    directory = tiny_base("llama").stored.tokenizer_dir
    assert BaseTokenizer(directory, (2, 0)).eos == 2
    assert BaseTokenizer(directory, (7,)).eos == 7
