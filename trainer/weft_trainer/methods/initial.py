"""The first values of LoRA's A and B that follow from the base's weights: PiSSA, OLoRA and LoftQ.

The base is what is served, and never changes. PiSSA and OLoRA begin with factors of the weight itself, `s B0 A0`, a
large part of it, and train beside the rest, `W - s B0 A0`. Beside the whole W the same training is the delta

    s (B A - B0 A0)  =  s ((B - B0) A + B0 (A - A0))

which is zero at the start and a LoRA of rank 2r: `[B - B0, B0]` and `[A; A - A0]`. PEFT's conversion writes the same
product as `[B, -B0]` and `[A; A0]`, a difference of large numbers that rounding to bfloat16 would spoil; each term here
is as small as what was learned.

LoftQ begins with what quantization lost, which is a delta over the quantized base: nothing is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from weft_adapters.base.huggingface import read_linears
from weft_adapters.base.load import StoredBase
from weft_adapters.base.original import lost
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import MAX_RANK, LowRankParams
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.methods import targets

SUBTRACTED = ("pissa", "olora")
"""The initialisations that are taken out of the delta again."""


@dataclass(frozen=True, eq=False)
class Start:
    """The first A and B of one module."""

    a_rK: Tensor
    b_Nr: Tensor
    subtracted: bool
    """Whether they are taken out of the delta again."""


class StartedFactors(nn.Module):
    """The A and B that were begun with and are subtracted from the delta: constants beside the trained ones."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.register_buffer("a_rK", start.a_rK)
        self.register_buffer("b_Nr", start.b_Nr)

    def delta(self, a_rK: Tensor, b_Nr: Tensor) -> tuple[Tensor, Tensor]:
        """(A (2r, K), B (N, 2r)) of what was learned: `B A` minus the start's."""
        a0_rK, b0_Nr = self.get_buffer("a_rK"), self.get_buffer("b_Nr")
        return torch.cat([a_rK, a_rK - a0_rK]), torch.cat([b_Nr - b0_Nr, b0_Nr], dim=1)

    @torch.no_grad()
    def split(self, a_RK: Tensor, b_NR: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `delta`: the trained A and B; takes the subtracted ones over."""
        r = a_RK.shape[0] // 2
        self.get_buffer("a_rK").copy_(a_RK[:r] - a_RK[r:])
        self.get_buffer("b_Nr").copy_(b_NR[:, r:])
        return a_RK[:r], b_NR[:, :r] + b_NR[:, r:]


def stored_params(options: LoraOptions, trained: LowRankParams) -> LowRankParams:
    """The artifact's parameters, from those of the trained A and B: twice the rank, under the same scaling, where the
    start is subtracted. Raises `InvalidInputError` for a rank whose double no adapter may have."""
    if options.init not in SUBTRACTED:
        return trained
    most = max(trained.rank(module) for module in trained.target_modules)
    if 2 * most > MAX_RANK:
        raise InvalidInputError(
            f"adapter.r: {most}, but adapter.init: {options.init} makes an artifact of twice the rank, which may be "
            f"{MAX_RANK} at most"
        )
    # Scaling is alpha / r, or alpha / sqrt(r).
    factor = math.sqrt(2) if trained.use_rslora else 2.0
    return replace(
        trained,
        r=2 * trained.r,
        alpha=factor * trained.alpha,
        rank_pattern={module: 2 * rank for module, rank in trained.rank_pattern.items()},
        alpha_pattern={module: factor * alpha for module, alpha in trained.alpha_pattern.items()},
    )


@torch.no_grad()
def starts(options: LoraOptions, stored: StoredBase, trained: LowRankParams) -> Iterator[tuple[str, Start]]:
    """The first A and B by module, in float32 on the CPU; nothing where they do not follow from weights.

    Raises `InvalidInputError` where `adapter.original` is not what the base was quantized from.
    """
    if options.init in SUBTRACTED:
        factorize = _principal if options.init == "pissa" else _orthogonal
        for module in trained.target_modules:
            weight_NK = stored.int4(module).dequantize()
            yield module, Start(*factorize(weight_NK, trained.rank(module), trained.scaling(module)), subtracted=True)
    elif options.init == "loftq":
        assert options.original is not None, "the options saw to it"
        for module, original_NK in _original_linears(stored.spec, options.original, trained.target_modules):
            lost_NK = lost(stored, module, original_NK, _named(module, options.original))
            yield module, Start(*_principal(lost_NK, trained.rank(module), trained.scaling(module)), subtracted=False)


def check_original(options: LoraOptions, base: BaseSpec, modules: Iterable[str]) -> None:
    """Raises `InvalidInputError` where `adapter.original` has not the weights of these modules, by their shapes: the
    files are mapped, and no value is read."""
    if options.original is not None:
        for _ in _original_linears(base, options.original, modules):
            pass


def check_values(options: object, stored: StoredBase) -> None:
    """Raises `InvalidInputError` where `adapter.original` is another model of the base's shape, by the values of the
    first module adapted. `starts` compares the others, when they are needed."""
    if isinstance(options, LoraOptions) and options.original is not None:
        modules = targets.resolve(options, stored.spec).target_modules[:1]
        for module, original_NK in _original_linears(stored.spec, options.original, modules):
            lost(stored, module, original_NK, _named(module, options.original))


def _original_linears(base: BaseSpec, path: Path, modules: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    try:
        if not path.is_dir():
            raise InvalidInputError(f"no directory at {path}")
        for module, weight_NK in read_linears(path, modules):
            if weight_NK.shape != base.linears[module]:
                raise InvalidInputError(
                    f"{module} is {tuple(weight_NK.shape)} in {path}, and {base.linears[module]} in the base"
                )
            yield module, weight_NK
    except InvalidInputError as error:
        raise InvalidInputError(
            f"adapter.original: {error.message}; LoftQ starts from what quantization lost, so it needs the float "
            f"weights of {base.fingerprint.id}: the directory of the Hugging Face model that the base was "
            "quantized from, in safetensors. Without them take another adapter.init"
        ) from error


def _principal(weight_NK: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """(A, B) with `scaling B A` the best approximation of that rank, both of one size: PiSSA, eq. 2 and 3."""
    left_NR, values_R, right_RK = torch.linalg.svd(weight_NK, full_matrices=False)
    root_r = (values_R[:rank] / scaling).sqrt()
    return (root_r[:, None] * right_RK[:rank]).contiguous(), (left_NR[:, :rank] * root_r).contiguous()


def _orthogonal(weight_NK: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """(R, Q), the first rows and columns of the weight's QR decomposition: OLoRA, algorithm 1. PEFT does not divide by
    the scaling here, and neither does this."""
    q_NR, r_RK = torch.linalg.qr(weight_NK)
    return r_RK[:rank].contiguous(), q_NR[:, :rank].contiguous()


def _named(module: str, path: Path) -> str:
    return f"adapter.original: {module} in {path}"
