"""How few tokens a text can take, told from its size and the tokenizer's own definition (`tokenizer.json`).

It lets a prompt be refused before any of it is tokenized. So it must never be too many: of a tokenizer that may drop
text, or put any amount of it into one token, nothing can be told. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Composing text shrinks it: U+1FBE U+0308 U+0301, 7 bytes, becomes U+0390, 2 bytes. No text shrinks to less than 2/7.
COMPOSING_SHRINKS = 4
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(0x100) if byte not in _PRINTED)
_BYTE_LEVEL = {chr(byte): byte for byte in _PRINTED} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
"""The characters that byte-level tokenizers write the 256 bytes with (GPT-2's table)."""
_RARE = frozenset([*range(0x20), 0x7F, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])
"""Bytes that a byte-level vocabulary may lack, as it never saw them: those of control characters and unassigned planes,
and those that UTF-8 has no use for. No other text becomes such a character when it is normalized."""
_BYTE_FALLBACK = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Digits"})


@dataclass(frozen=True)
class TokenBytes:
    """What one token of a tokenizer can stand for at most."""

    most: int
    """Bytes of UTF-8."""
    dropped: bytes
    """Bytes that may take no token at all, and do not count."""

    def least_tokens(self, text: str) -> int:
        """No text of this size takes fewer tokens."""
        return -(-len(text.encode().translate(None, self.dropped)) // self.most)


def token_bytes(definition: Mapping[str, Any], normalize: Callable[[str], str]) -> TokenBytes | None:
    """What one token can stand for; None where text of any length may take no more than one token.

    definition: the content of `tokenizer.json`. normalize: what the tokenizer's normalizer makes of a text.

    It is known for BPE whose vocabulary can write every byte, byte-level or by byte fallback, when normalizer,
    pre-tokenizer and added tokens drop nothing. That is what decoder-only models have.
    """
    model, added = definition.get("model") or {}, definition.get("added_tokens") or []
    steps = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    shrinks = _shrinks(_steps(definition.get("normalizer"), "normalizers"))
    if shrinks is None or model.get("type") != "BPE" or not all(map(_keeps, steps)):
        return None
    # These take the blanks around them in, however many.
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    vocabulary = frozenset(model.get("vocab") or ())
    lacking = frozenset(byte for character, byte in _BYTE_LEVEL.items() if character not in vocabulary)
    if any(step.get("type") == "ByteLevel" for step in steps) and lacking <= _RARE:
        longest = max(map(len, vocabulary))
    elif model.get("byte_fallback") and vocabulary >= _BYTE_FALLBACK:
        longest, lacking = max(len(token.encode()) for token in vocabulary), frozenset()
    else:
        return None
    # An added token is found in the text as it is or, if it says so, in the normalized text.
    for content in (token["content"] for token in added):
        longest = max(longest, len(content.encode()), len(normalize(content).encode()))
    return TokenBytes(longest * shrinks, bytes(sorted(lacking)))


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A part of the definition as the list of what it does, one after another."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [step for inner in part[key] for step in _steps(inner, key)]


def _shrinks(normalizers: list[Mapping[str, Any]]) -> int | None:
    """How many times smaller normalizing makes a text at most; None if nobody knows."""
    times = 1
    for step in normalizers:
        match step:
            case {"type": "NFC" | "NFD"}:
                times *= COMPOSING_SHRINKS
            case {"type": "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                if len(new.encode()) < len(old.encode()) or not new.isprintable():
                    return None
            case _:
                return None
    return times


def _keeps(step: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer only cuts and writes anew, and drops nothing."""
    if step.get("type") in {"Split", "Punctuation"}:
        return step.get("behavior") in {"Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"}
    return step.get("type") in _KEEPING_PRE_TOKENIZERS
