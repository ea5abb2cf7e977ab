"""How many virtual tokens a soft prompt or a prefix has, and what they leave of a context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds import kind_schema
from weft_registry.manifest import Manifest
from weft_trainer.data.tokenization import TextEncoder


@dataclass(frozen=True)
class Room:
    """What the context of a base holds of a text, and so of an example, beside an adapter."""

    context: int
    virtual: int
    """Tokens of the context that the adapter's own values take."""

    @classmethod
    def beside(cls, params: Any, base: BaseSpec) -> Room:
        """Beside an adapter of these parameters; None: of the base alone."""
        return cls(base.context_length, getattr(params, "num_virtual_tokens", 0))

    @classmethod
    def of(cls, manifest: Manifest | None, base: BaseSpec) -> Room:
        """Beside the adapter of a manifest; None: of the base alone. Raises what parsing its parameters raises."""
        return cls.beside(None if manifest is None else kind_schema(manifest.kind).parse(manifest.adapter), base)

    @property
    def tokens(self) -> int:
        """Never below zero."""
        return max(0, self.context - self.virtual)

    @property
    def less(self) -> str:
        """What makes it less than the context, for messages; empty where nothing does."""
        return f" after {self.virtual} virtual tokens" if self.virtual else ""


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
