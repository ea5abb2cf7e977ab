"""One request while it runs: its tokens, its blocks of the cache, its random numbers."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor

from weft_adapters.kinds.kind import Adapter, KeyValues
from weft_server.engine import EngineRequest, FinishReason
from weft_server.torch_engine.blocks import BLOCK_TOKENS, BlockKey, next_key, root_key


class Sequence:
    """The state of one request. Only the step thread touches it once it is submitted."""

    def __init__(self, request: EngineRequest, adapter: Adapter[Any] | None) -> None:
        self.request = request
        self.adapter = adapter
        self.digest = "" if adapter is None else adapter.digest
        """The adapter's; empty for the base model."""
        self.prefix: KeyValues | None = adapter.kind.key_values(adapter) if adapter else None
        self.num_prefix = self.prefix.length if self.prefix else 0
        """Virtual tokens whose keys and values are given."""
        self._soft_PE: Tensor | None = adapter.kind.soft_prompt(adapter) if adapter else None
        self.num_virtual = virtual_tokens(adapter)
        """Virtual tokens before the prompt: those of a prefix, then those of a soft prompt, which are computed."""
        self.token_ids = list(request.token_ids)
        """The prompt and what was generated after it."""
        self.blocks: list[int] = []
        """Its block table; empty while it waits."""
        self.num_cached = 0
        """Tokens whose keys and values are in its blocks, virtual ones included; 0 while it waits."""
        self.num_published = 0
        """Its leading blocks that are shared, or were offered to be."""
        self.reused_inputs: int | None = None
        """Prompt tokens that its first admission found in the cache; None before."""
        self.generator = _generator(request.sampling.seed) if request.sampling.temperature > 0 else None
        self.submitted_s = time.monotonic()
        self._keys: list[BlockKey] = []
        self._root = root_key(adapter.digest if adapter else None)
        self.keys()

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: virtual, prompt and generated."""
        return self.num_virtual + len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def most_tokens(self) -> int:
        """Tokens it may reach in the cache: virtual, prompt and new. The last new token is never cached."""
        return self.num_virtual + len(self.request.token_ids) + self.request.max_new_tokens - 1

    def keys(self) -> list[BlockKey]:
        """The key of every block that its tokens fill, in order."""
        while (len(self._keys) + 1) * BLOCK_TOKENS <= self.num_tokens:
            begin = len(self._keys) * BLOCK_TOKENS - self.num_virtual
            text = self.token_ids[max(0, begin) : max(0, begin + BLOCK_TOKENS)]
            self._keys.append(next_key(self._keys[-1] if self._keys else self._root, text))
        return self._keys

    def virtual_embeddings(self, start: int, count: int) -> Tensor:
        """(count, E): the embeddings of the virtual tokens from position `start` on."""
        assert self._soft_PE is not None, "a prefix is never computed"
        return self._soft_PE[start - self.num_prefix : start - self.num_prefix + count]

    def finish_reason(self) -> FinishReason | None:
        """Why it is over, judged by its last token; None if it goes on."""
        if self.token_ids[-1] in self.request.stop_token_ids:
            return FinishReason.EOS_TOKEN
        if self.num_generated >= self.request.max_new_tokens:
            return FinishReason.LENGTH
        return None


def virtual_tokens(adapter: Adapter[Any] | None) -> int:
    """Positions that an adapter takes before a request's own tokens."""
    if adapter is None:
        return 0
    prefix, soft_PE = adapter.kind.key_values(adapter), adapter.kind.soft_prompt(adapter)
    return (prefix.length if prefix else 0) + (0 if soft_PE is None else int(soft_PE.shape[0]))


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    # torch takes 63 bits of a seed.
    generator.manual_seed((int.from_bytes(os.urandom(8)) if seed is None else seed) & ((1 << 63) - 1))
    return generator
