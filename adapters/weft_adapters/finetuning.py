"""What a fine-tuning changed: the difference between two models of one architecture, module by module.

A LoRA adapter changes linear weights and nothing else. What else a fine-tuning has changed is of two sorts:

- The weights of the norm before a sublayer. The linears that read it take them over, exactly: where the base's norm is
  gamma, which stays in the model, and the fine-tuned one gamma', `W' (gamma' x) = W' diag(gamma' / gamma) (gamma x)`.
- The rest: embeddings, head, last norm, norms of queries and keys, biases. No adapter of linears can carry it.

The difference of the linears is taken to the stored base, as served (the dequantized int4 weights: then the adapter
corrects the rounding too, as far as its rank goes), or to the original weights from before both the fine-tuning and
the rounding (then it holds what the fine-tuning learned, and nothing of the rounding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weft_adapters.base import layout
from weft_adapters.base.config import ModelConfig
from weft_adapters.base.load import StoredBase
from weft_registry.errors import InvalidInputError

Read = Callable[[str], Tensor]
"""A tensor by the name that transformers gives it, in its own dtype."""

_READERS: Mapping[str, tuple[str, ...]] = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_NOT_MATHEMATICS = frozenset({"eos_token_ids", "bos_token_id", "context_length"})
# An 8-bit value is off by half a step, and by what its float16 scale was rounded: 127 steps of 2^-11 at most.
_STEPS_8BIT = 0.5 + 127 / 2**11


@dataclass(frozen=True)
class Change:
    """One tensor that changed and that no adapter of linears can carry."""

    name: str
    relative: float
    """Frobenius norm of the difference, over that of the base's tensor; rows that only one of the two has count as
    zeros in the other."""
    rows: tuple[int, int] | None = None
    """How many there were and are, where the vocabulary changed."""

    def __str__(self) -> str:
        rows = f"{self.rows[1]} rows where the base has {self.rows[0]}, " if self.rows else ""
        return f"{self.name} ({rows}by {self.relative:.2g} of its norm)"


@dataclass(frozen=True, eq=False)
class FineTuning:
    """The difference between a base and a model fine-tuned from it."""

    deltas: Callable[[], Iterator[tuple[str, Tensor]]]
    """(module, (N, K) in float64) for every linear module that was compared, in model order, folded norms included."""
    folded: tuple[str, ...]
    """The norms that changed and that the deltas carry."""
    rest: tuple[Change, ...]
    """What changed and cannot be carried."""


def check_same_model(base: ModelConfig, other: ModelConfig, what: str) -> None:
    """Raises `InvalidInputError` naming every setting in which the layers of `other` compute something else than those
    of `base`. Added tokens and a head of its own are changed tensors, which `differences` reports."""
    other = replace(other, vocab_size=base.vocab_size, tie_word_embeddings=base.tie_word_embeddings)
    if base.sha256() == other.sha256():
        return
    ours, theirs = vars(base), vars(other)
    differing = [
        f"{key} {theirs[key]!r} (the base: {ours[key]!r})"
        for key in ours
        if key not in _NOT_MATHEMATICS and ours[key] != theirs[key]
    ]
    raise InvalidInputError(f"{what} is not the base's architecture: {'; '.join(differing)}")


def differences(
    stored: StoredBase,
    tuned: Read,
    original: Read | None = None,
    *,
    modules: Iterable[str] | None = None,
    others: Iterable[str] | None = None,
) -> FineTuning:
    """What `tuned` changed against `original`, or against the stored base where that is None.

    `modules` and `others` limit what is compared: linear modules, and the names of other tensors; None is all of them.
    A tensor that is equal in the shorter of two precisions did not change. The head of a model that ties it is its
    embedding.
    """
    before = original or (lambda name: _stored_tensor(stored, name))
    folds: dict[str, Tensor] = {}
    folded: list[str] = []
    rest: list[Change] = []
    for name in others if others is not None else layout.dense_tensors(stored.config):
        old, new = before(name), tuned(name)
        if _same(old, new) or (original is None and _same_in_8_bits(stored, name, new)):
            continue
        factor_K = _fold(name, old, new)
        if factor_K is None:
            rest.append(_change(name, old.double(), new.double()))
            continue
        folded.append(name)
        folds |= dict.fromkeys(_readers(name), factor_K)
    compared = list(modules) if modules is not None else list(stored.spec.linears)
    # A folded norm changes every linear that reads it, whether or not that was trained.
    compared += [module for module in stored.spec.linears if module in folds and module not in set(compared)]

    def deltas() -> Iterator[tuple[str, Tensor]]:
        for module in sorted(compared, key=list(stored.spec.linears).index):
            new_NK = tuned(f"{module}.weight").double()
            if module in folds:
                new_NK = new_NK * folds[module]
            yield module, new_NK - before(f"{module}.weight").double()

    return FineTuning(deltas, tuple(folded), tuple(rest))


def _stored_tensor(stored: StoredBase, name: str) -> Tensor:
    module, name = name.removesuffix(".weight"), _stored_name(stored, name)
    if module in stored.spec.linears and name != module:
        return stored.int4(module).dequantize()
    return stored.tensor(name) if name in stored.tensor_names else stored.dense(name, torch.float32)


def _stored_name(stored: StoredBase, name: str) -> str:
    return layout.EMBEDDING if name == layout.HEAD and stored.config.tie_word_embeddings else name


def _same(old: Tensor, new: Tensor) -> bool:
    return torch.equal(old.to(new.dtype), new) or torch.equal(old, new.to(old.dtype))


def _same_in_8_bits(stored: StoredBase, name: str, new: Tensor) -> bool:
    """Whether the stored base holds `new`, rounded to 8 bits."""
    name = _stored_name(stored, name)
    if name in stored.tensor_names:
        return False
    scale_VG, held_VK = stored.tensor(name + layout.SCALE8).float(), stored.dense(name, torch.float32)
    if held_VK.shape != new.shape:
        return False
    off = (new.float() - held_VK).abs().view(*scale_VG.shape, layout.GROUP8)
    return bool((off <= scale_VG[..., None] * _STEPS_8BIT).all())


def _change(name: str, old: Tensor, new: Tensor) -> Change:
    size, rows = float(old.norm()) or 1.0, min(len(old), len(new))
    distance = math.hypot(*(float(part.norm()) for part in (new[:rows] - old[:rows], new[rows:], old[rows:])))
    return Change(name, distance / size, None if len(old) == len(new) else (len(old), len(new)))


def _fold(name: str, old_K: Tensor, new_K: Tensor) -> Tensor | None:
    """gamma' / gamma in float64, where the linears that read the norm can take it over."""
    if not _readers(name):
        return None
    old_K, new_K = old_K.double(), new_K.double()
    # An input that the base multiplies by zero cannot be brought back.
    if bool(((old_K == 0) & (new_K != 0)).any()):
        return None
    return torch.where(old_K == 0, 1.0, new_K / old_K)


def _readers(name: str) -> tuple[str, ...]:
    layer, _, norm = name.removesuffix(".weight").rpartition(".")
    return tuple(f"{layer}.{leaf}" for leaf in _READERS.get(norm, ()))


def carried(stored: StoredBase) -> list[str]:
    """The names of the tensors whose changes an adapter can carry: linear weights and the norms before sublayers."""
    dense = [name for name in layout.dense_tensors(stored.config) if _readers(name)]
    return [*(f"{module}.weight" for module in stored.spec.linears), *dense]
