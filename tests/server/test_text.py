"""Text in and out: the tokenizer against transformers, incremental decoding, stop sequences."""

from collections.abc import Callable
from pathlib import Path
from shutil import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.tiny_models import AddedBase
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_server.stopping import StopMatcher
from weft_server.tokenizer import Detokenizer, Tokenizer

TEXTS = ["The capital of France is", "Zoë 👩‍🚀 naïve\n\ttabs", "<|im_start|>user", "日本語のテキスト", "a"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(text: str, tiny_base: Callable[..., AddedBase]) -> None:
    directory = tiny_base().stored.tokenizer_dir
    ours, theirs = Tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_the_chat_template_renders_as_transformers_does(tiny_base: Callable[..., AddedBase]) -> None:
    directory = tiny_base().stored.tokenizer_dir
    messages = [("system", "Be brief."), ("user", "Zoë 👩‍🚀?")]
    theirs = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        [{"role": r, "content": c} for r, c in messages], add_generation_prompt=True, return_dict=False
    )
    assert Tokenizer(directory).encode_chat(messages) == theirs


@pytest.mark.real
def test_the_real_tokenizer_equals_transformers(real_base: AddedBase) -> None:
    directory = real_base.stored.tokenizer_dir
    ours, theirs = Tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    chat = [{"role": "user", "content": "Hi"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat([("user", "Hi")]) == expected


def test_a_base_without_a_template_and_a_template_that_refuses_say_so(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    copy(tiny_base().stored.tokenizer_dir / "tokenizer.json", tmp_path)
    with pytest.raises(PreconditionError, match="send a prompt instead"):
        Tokenizer(tmp_path).encode_chat([("user", "x")])
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidInputError, match="roles must alternate"):
        Tokenizer(tmp_path).encode_chat([("user", "x")])


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_the_whole(text: str, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode(text)
    detokenizer = Detokenizer(tiny_tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == tiny_tokenizer.decode(ids)
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cut=st.integers(1, 5),
    include=st.booleans(),
)
def test_stop_sequences_end_the_text_however_it_is_cut(text: str, stops: list[str], cut: int, include: bool) -> None:
    matcher = StopMatcher(stops, include=include)
    answer = ""
    for start in range(0, len(text), cut):
        if matcher.matched is None:
            answer += matcher.push(text[start : start + cut])
    if matcher.matched is None:
        answer += matcher.flush()
        assert answer == text
        assert not any(stop in text for stop in stops)
    else:
        assert matcher.matched in stops
        begin = answer.removesuffix(matcher.matched) if include else answer
        assert text.startswith(begin + matcher.matched)
        assert not any(stop in begin for stop in stops)


def test_text_that_may_become_a_stop_sequence_is_held_back() -> None:
    matcher = StopMatcher(["END"], include=False)
    assert matcher.push("the E") == "the "
    assert matcher.push("N") == ""
    assert matcher.push("X") == "ENX"
    assert matcher.push("END of it") == ""
    assert matcher.matched == "END"
