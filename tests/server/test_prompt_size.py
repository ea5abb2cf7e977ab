"""Prompts that cannot fit are refused by their size; long ones are tokenized beside everything else."""

import json
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from tests.server.homes import prepare
from tests.tiny_models import SPECIAL, AddedBase, make_tokenizer
from weft_client import AsyncInferenceClient
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_server.options import ServeOptions
from weft_server.serving import Running, running
from weft_server.token_bytes import COMPOSING_SHRINKS, TokenBytes
from weft_server.tokenizer import Tokenizer


def byte_level() -> FastTokenizer:
    """As the tests' base models have it."""
    tokenizer: FastTokenizer = make_tokenizer().backend_tokenizer
    return tokenizer


def composing() -> FastTokenizer:
    """Byte-level behind a cut of its own and NFC, as Qwen's. Its longest token is what shrinks most into it, U+0390."""
    longest = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\u0390")[0][0]
    known = [*sorted(pre_tokenizers.ByteLevel.alphabet()), longest]
    tokenizer = FastTokenizer(
        models.BPE({token: index for index, token in enumerate(known)}, [(longest[0], longest[1])])
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def lacking_bytes() -> FastTokenizer:
    """Byte-level without the bytes 0x04, 0x13 and 0xF1, as SmolLM2's: it drops them."""
    definition = json.loads(byte_level().to_str())
    for character in "\u0104\u0113\u00f1":
        del definition["model"]["vocab"][character]
    tokenizer: FastTokenizer = FastTokenizer.from_str(json.dumps(definition))
    assert tokenizer.encode("\x04" * 300 + "\x13", add_special_tokens=False).ids == []
    return tokenizer


def byte_fallback() -> FastTokenizer:
    """Characters, and bytes for those it does not know, as Llama 2's and Mistral's."""
    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcé", "▁a", "ab", "▁▁", "▁▁▁▁"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "▁"), ("▁▁", "▁▁")]
    vocabulary = {token: index for index, token in enumerate(known)}
    tokenizer = FastTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_tokens([AddedToken("   c   ", normalized=True)])
    return tokenizer


BOUNDED = {
    "byte-level": byte_level,
    "composing": composing,
    "lacking bytes": lacking_bytes,
    "byte fallback": byte_fallback,
}


def opened(tokenizer: FastTokenizer, directory: Path) -> Tokenizer:
    tokenizer.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


@pytest.fixture(scope="module", params=BOUNDED)
def bounded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return opened(BOUNDED[request.param](), tmp_path_factory.mktemp("tokenizer"))


# Text that takes few tokens: special ones, repetitions, and characters that shrink when they are composed.
PIECES = [
    *SPECIAL,
    "\u1fbe\u0308\u0301",
    "\u1112\u1161\u11ab",
    "\u212a",
    "▁▁▁▁",
    "   c   ",
    "▁▁▁c▁▁▁",
    "    ",
    "the",
    "👩‍🚀",
    "\x04\x13",
    "\U00050000",
]


@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12), times=st.integers(1, 5))
def test_no_text_takes_fewer_tokens_than_its_size_says(bounded: Tokenizer, pieces: list[str], times: int) -> None:
    text = "".join(pieces) * times
    assert bounded.token_bytes is not None
    assert len(bounded.encode(text, special=False)) >= bounded.token_bytes.least_tokens(text)


def test_a_byte_level_token_stands_for_no_more_than_the_longest_there_is(tmp_path: Path) -> None:
    tokenizer = opened(byte_level(), tmp_path)
    longest = max(len(tokenizer.token_text(index).encode()) for index in range(512))
    assert longest == len("<|endoftext|>")
    assert tokenizer.token_bytes == TokenBytes(longest, b"")


@pytest.mark.real
def test_the_real_tokenizer_has_a_bound_that_a_text_of_its_longest_token_reaches(real_base: AddedBase) -> None:
    tokenizer = Tokenizer(real_base.stored.tokenizer_dir)
    assert tokenizer.token_bytes is not None
    longest = "\n" + " " * 80
    assert len(tokenizer.encode(longest)) == tokenizer.token_bytes.least_tokens(longest) == 1
    assert tokenizer.token_bytes.least_tokens(longest + "a") == 2
    assert tokenizer.encode("\x04" * 1000) == []
    assert tokenizer.token_bytes.least_tokens("\x04" * 1000) == 0


def test_no_text_shrinks_more_than_assumed_when_it_is_composed() -> None:
    # Composing keeps the fully decomposed text. So weigh each of its characters with the most bytes it may have come
    # in; no text that becomes `character` had more bytes than its parts weigh.
    weights: dict[str, float] = {}
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for character in everything:
        parts = unicodedata.normalize("NFD", character)
        for part in parts:
            weights[part] = max(weights.get(part, 0), len(character.encode()) / len(parts))
    shrinks = [
        sum(weights[part] for part in unicodedata.normalize("NFD", character)) / len(character.encode())
        for character in everything
    ]
    assert max(shrinks) <= COMPOSING_SHRINKS
    assert len("\u1fbe\u0308\u0301".encode()) / len(unicodedata.normalize("NFC", "\u1fbe\u0308\u0301").encode()) == 3.5


def _set(part: str, value: Any) -> Callable[[FastTokenizer], None]:
    return lambda tokenizer: setattr(tokenizer, part, value)


# How each makes one token, or none, of text of any length.
UNBOUNDED: dict[str, tuple[Callable[[], FastTokenizer], Callable[[FastTokenizer], Any], str]] = {
    "a normalizer that strips": (byte_level, _set("normalizer", normalizers.Strip()), " "),
    "a normalizer that shortens": (byte_level, _set("normalizer", normalizers.Replace("ab", "")), "ab"),
    "a pre-tokenizer that drops": (
        byte_level,
        _set(
            "pre_tokenizer",
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)]),
        ),
        " ",
    ),
    "a cut that drops": (
        byte_level,
        _set(
            "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Split("q", "removed"), pre_tokenizers.ByteLevel()])
        ),
        "q",
    ),
    "an added token that takes blanks in": (
        byte_level,
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)]),
        " ",
    ),
    "bytes that are not in the vocabulary": (byte_level, _set("model", models.BPE({"a": 0}, [])), "b"),
    "words that are not in the vocabulary": (
        byte_level,
        _set("model", models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
        "b",
    ),
}


@pytest.mark.parametrize("case", UNBOUNDED)
def test_a_tokenizer_that_may_swallow_any_text_has_no_bound(case: str, tmp_path: Path) -> None:
    make, change, swallowed = UNBOUNDED[case]
    fast = make()
    change(fast)
    tokenizer = opened(fast, tmp_path)
    assert len(tokenizer.encode(swallowed * 300 + "<mask>", special=False)) < 30
    assert tokenizer.token_bytes is None


@pytest.mark.parametrize("special", [True, False])
def test_a_long_text_has_the_ids_that_its_tokenizer_gives_it(
    tiny_base: Callable[..., AddedBase], special: bool
) -> None:
    directory = tiny_base().stored.tokenizer_dir
    text = "Zoë said: <|im_start|>the quick brown 👩‍🚀 日本\n" * 300
    expected = FastTokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=special).ids
    assert Tokenizer(directory).encode(text, special=special) == expected


def test_other_threads_go_on_while_a_long_text_is_tokenized(tiny_tokenizer: Tokenizer) -> None:
    begun, ended = threading.Event(), threading.Event()

    def encode() -> None:
        begun.set()
        tiny_tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 20_000)
        ended.set()

    thread = threading.Thread(target=encode)
    thread.start()
    begun.wait()
    turns = 0
    while not ended.is_set():
        turns += 1
        time.sleep(0.0005)
    thread.join()
    # With Python's lock kept it is one or two turns, whatever the machine; else hundreds.
    assert turns >= 10


@pytest.fixture
async def served(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> Any:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    options = ServeOptions(base.name, port=0, dtype="float32", grace_s=0, home=home)
    async with running(options) as server, AsyncInferenceClient(server.address, timeout_s=120) as client:
        yield server, client


async def test_what_cannot_fit_is_refused_unread_and_what_may_fit_is_tokenized_in_another_thread(
    served: tuple[Running, AsyncInferenceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = served
    room = server.engine.context_room(None)
    tokenized: list[tuple[int, bool]] = []
    encode = Tokenizer.encode

    def noting(self: Tokenizer, text: str, *, special: bool = True) -> list[int]:
        tokenized.append((len(text), threading.current_thread() is threading.main_thread()))
        return encode(self, text, special=special)

    monkeypatch.setattr(Tokenizer, "encode", noting)
    longest = len("<|endoftext|>")
    most = longest * (room - 1)
    refused = rf"input: {most + 1} bytes are at least {room} tokens .*more than {longest}.*context holds {room}"
    with pytest.raises(InvalidInputError, match=refused) as error:
        await client.generate("x" * (most + 1), "test/lora")
    assert [violation.field for violation in error.value.violations] == ["input"]
    # Whoever cannot be served brings no adapter into memory.
    assert list(server.residency.resident()) == []
    with pytest.raises(InvalidInputError, match=rf"{15 << 20} bytes are at least"):
        await client.generate("x" * (15 << 20))
    with pytest.raises(InvalidInputError, match=r"bytes are at least .*context holds"):
        await client.generate(messages=[{"role": "user", "content": "x" * most}])
    with pytest.raises(InvalidInputError, match=rf"token_ids: 1000000 tokens leave no room.*context holds {room}"):
        await client.generate(token_ids=[1] * 1_000_000)
    assert tokenized == []
    # One byte less may be special tokens only, and fits.
    done = await client.generate("<|endoftext|>" * (room - 1), max_new_tokens=1)
    assert done.input_tokens == room - 1
    with pytest.raises(InvalidInputError, match=rf"tokens leave no room to answer: the context holds {room}"):
        await client.generate("x" * most, "test/lora")
    assert tokenized == [(most, False)] * 2
    # Where an adapter takes a part of the context, it is said how much: the text alone would have had room.
    left = room - 16
    beside = f"{left} beside the 16 virtual tokens of the adapter"
    with pytest.raises(InvalidInputError, match=f"{left} tokens leave no room to answer: the context holds {beside}"):
        await client.generate(adapter="test/prefix", token_ids=[5] * left)
    with pytest.raises(InvalidInputError, match=f"exceed the context of {beside}: ask for at most 1$"):
        await client.generate(adapter="test/prefix", token_ids=[5] * (left - 1), max_new_tokens=2)
    await server.bridge.drained()
    assert all(resident.leases == 0 for resident in server.residency.resident())
