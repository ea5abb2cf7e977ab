"""One request while it runs: its tokens, its place in the cache, its random numbers."""

from __future__ import annotations

import os
from typing import Any

import torch

from weft_adapters.kinds.kind import Adapter, KeyValues
from weft_server.engine import EngineRequest, FinishReason
from weft_server.torch_engine.kv_cache import Arena


class Sequence:
    """The state of one request. Only the step thread touches it after admission."""

    def __init__(self, request: EngineRequest, adapter: Adapter[Any] | None) -> None:
        self.request = request
        self.adapter = adapter
        self.prefix: KeyValues | None = adapter.kind.key_values(adapter) if adapter else None
        self.arena: Arena[Sequence] | None = None
        """Where its keys and values are; None before admission."""
        self.cached = 0
        """Tokens whose keys and values are in the cache, virtual ones included."""
        self.generated: list[int] = []
        self.failed = False
        """Whether its numbers stopped being finite."""
        self.generator = _generator(request.sampling.seed) if request.sampling.temperature > 0 else None

    @property
    def most_tokens(self) -> int:
        """Tokens it may reach in the cache: virtual, prompt and new. The last new token is never cached."""
        prefix = self.prefix.length if self.prefix else 0
        return prefix + len(self.request.token_ids) + self.request.max_new_tokens - 1

    def advance(self) -> None:
        """Notes that a step has cached the tokens it was given: the prompt first, then one at a time."""
        self.cached += 1 if self.generated else len(self.request.token_ids)

    def finish_reason(self) -> FinishReason | None:
        """Why it is over, judged by its last token; None if it goes on."""
        if self.generated[-1] in self.request.stop_token_ids:
            return FinishReason.EOS_TOKEN
        if len(self.generated) >= self.request.max_new_tokens:
            return FinishReason.LENGTH
        return None


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    # torch takes 63 bits of a seed.
    generator.manual_seed((int.from_bytes(os.urandom(8)) if seed is None else seed) & ((1 << 63) - 1))
    return generator
