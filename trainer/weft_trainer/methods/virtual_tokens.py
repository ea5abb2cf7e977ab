"""How many virtual tokens a soft prompt or a prefix has."""

from __future__ import annotations

from weft_registry.errors import InvalidInputError
from weft_trainer.data.tokenization import TextEncoder


def count_virtual_tokens(count: int | None, text: str | None, default: int, encoder: TextEncoder) -> int:
    """`adapter.num_virtual_tokens` where it is given, or else the tokens of `adapter.init_text`, or else `default`.

    Raises `InvalidInputError` for a text without tokens, or with more of them than `count`.
    """
    if text is None:
        return count or default
    words = len(encoder.completion(text))
    if words == 0:
        raise InvalidInputError("adapter.init_text: no token at all; leave it out for other first values")
    if count is not None and count < words:
        raise InvalidInputError(
            f"adapter.num_virtual_tokens: {count}, but adapter.init_text has {words} tokens; shorten the text or leave "
            "num_virtual_tokens out"
        )
    return count or words
