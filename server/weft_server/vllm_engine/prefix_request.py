"""What a request with a prefix adapter carries through vLLM, written and read. No vLLM and no tensors here.

vLLM knows token ids only. A prefix of P virtual tokens is P placeholder ids before the prompt, whose keys and values
`prefix_connector` writes into the cache in place of computing them; the adapter is named beside the request. vLLM finds
cached blocks by their token ids and a salt: the salt is the version's digest, so that two versions never share a block
and requests for one version share what they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.kinds.prefix import PrefixSchema
from weft_registry.manifest import Manifest

PLACEHOLDER_ID = 0
"""It is never computed; but it counts as a token of the prompt, where a sampler looks at those (repetition)."""
PARAMS_KEY = "weft_prefix"
_SALT = "prefix:"
_FIELDS: Mapping[str, type] = {"digest": str, "file": str, "sha256": str, "num_virtual_tokens": int}


@dataclass(frozen=True)
class PrefixAdapter:
    """One version of a prefix adapter, as vLLM's processes are told of it."""

    digest: str
    """The version's."""
    file: str
    """Where its tensors are; every worker reads it."""
    sha256: str
    """The file's digest."""
    num_virtual_tokens: int

    @property
    def cache_salt(self) -> str:
        """What keeps its blocks apart from everybody else's."""
        return _SALT + self.digest


class PrefixRequest(NamedTuple):
    """The parts of a vLLM request that a prefix adapter adds."""

    placeholder_ids: list[int]
    """They go before the prompt's token ids. A prompt with none of its own is refused."""
    cache_salt: str
    extra_args: dict[str, Any]
    """For `SamplingParams(extra_args=...)`."""


def prefix_adapter(directory: Path, manifest: Manifest, digest: str) -> PrefixAdapter:
    """The prefix adapter in an artifact's directory. Raises `UnsupportedError` if it is of another kind."""
    if manifest.kind != PrefixSchema.name:
        raise UnsupportedError(f"{manifest.name} ({digest}) is of kind {manifest.kind!r}, not a prefix")
    weights = next(file for file in manifest.files if file.path == artifact.WEIGHTS)
    params = PrefixSchema().parse(manifest.adapter)
    return PrefixAdapter(
        digest, str((directory / artifact.WEIGHTS).resolve()), weights.sha256, params.num_virtual_tokens
    )


def prefix_request(adapter: PrefixAdapter) -> PrefixRequest:
    """What a request with this adapter carries.

    vLLM counts the placeholders as tokens of the prompt, and as cached ones: whoever reports numbers of tokens takes
    `num_virtual_tokens` off both. A request with it has that much less room. `prompt_logprobs` fails it: there are
    none for tokens that are not computed.
    """
    return PrefixRequest(
        placeholder_ids=[PLACEHOLDER_ID] * adapter.num_virtual_tokens,
        cache_salt=adapter.cache_salt,
        extra_args={"kv_transfer_params": {PARAMS_KEY: dict(vars(adapter))}},
    )


def read_request(
    kv_transfer_params: Mapping[str, Any] | None, cache_salt: str | None, num_tokens: int
) -> PrefixAdapter | None:
    """The adapter that a request carries; None for one without.

    Raises `InvalidInputError` for anything that `prefix_request` would not have made. A salt without its adapter is
    refused too: its blocks would hold the keys and values of placeholders, and be found by those who have one.
    """
    block = (kv_transfer_params or {}).get(PARAMS_KEY)
    if block is None:
        if (cache_salt or "").startswith(_SALT):
            raise InvalidInputError(f"cache_salt {str(cache_salt)[:100]!r} belongs to prefix adapters")
        return None
    if (
        not isinstance(block, Mapping)
        or set(block) != set(_FIELDS)
        or any(type(block[name]) is not kind for name, kind in _FIELDS.items())
    ):
        raise InvalidInputError(f"kv_transfer_params.{PARAMS_KEY}: expected {', '.join(_FIELDS)}")
    adapter = PrefixAdapter(**block)
    digests.check(adapter.digest, f"kv_transfer_params.{PARAMS_KEY}.digest")
    digests.check(adapter.sha256, f"kv_transfer_params.{PARAMS_KEY}.sha256")
    if cache_salt != adapter.cache_salt:
        raise InvalidInputError(f"cache_salt {str(cache_salt)[:100]!r}: with this prefix it is {adapter.cache_salt}")
    if not 0 < adapter.num_virtual_tokens < num_tokens:
        raise InvalidInputError(
            f"a prompt of {num_tokens} tokens: a prefix of {adapter.num_virtual_tokens} has as many placeholders, and "
            "then the prompt's own, at least one"
        )
    return adapter
