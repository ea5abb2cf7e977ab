"""Round-to-nearest quantization of one linear weight, group-wise, with a float minimum per group.

    scale = fp16((max - min) / top)    minimum = fp16(min)    code = clamp(round((w - minimum) / scale), 0, top)

over each group of g inputs, top = 2^bits - 1. Codes of fewer than 4 bits lie in 4 as well. Codes are chosen
against the ROUNDED scale and minimum, so rounding those two costs no more than it must. Knows nothing of files or
models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight, pack_codes
from weft_registry.errors import InvalidInputError, UnsupportedError

GROUP_SIZES = (32, 64, 128)
BITS = (2, 3, 4)
_CHUNK_ELEMENTS = 1 << 22


def check_options(bits: int, group_size: int) -> None:
    """Raises `UnsupportedError` for a width and `InvalidInputError` for a group size that is not offered."""
    if bits not in BITS:
        raise UnsupportedError(f"--bits {bits} is not supported; {', '.join(map(str, BITS))} are")
    if group_size not in GROUP_SIZES:
        raise InvalidInputError(f"--group-size {group_size}: expected one of {', '.join(map(str, GROUP_SIZES))}")


def quantize(weight_NK: Tensor, group_size: int, name: str, bits: int = 4) -> Int4Weight:
    """The quantized form of a dense weight (N, K) of any floating dtype.

    Computed in float64, some rows at a time: the codes, and so a base's fingerprint, do not depend on the machine.
    A constant group gets scale 0 and code 0. Raises `InvalidInputError` naming the tensor for NaN, infinity, values
    that float16 cannot hold, or a K that the group size does not divide.
    """
    n_in = weight_NK.shape[1]
    check_groups(n_in, group_size, name)
    rows = max(1, _CHUNK_ELEMENTS // n_in)
    parts = [_quantize_rows(chunk, group_size, name, 2**bits - 1) for chunk in torch.split(weight_NK, rows)]
    return Int4Weight(*(torch.cat(column) for column in zip(*parts, strict=True)))


def check_groups(n_in: int, group_size: int, name: str) -> None:
    """Raises `InvalidInputError` naming the tensor where a group size does not divide its inputs."""
    if n_in % group_size:
        raise InvalidInputError(
            f"{name}: {n_in} inputs do not divide into groups of {group_size}; choose a smaller one"
        )


def grid(w_NGg: Tensor, top: int, name: str) -> tuple[Tensor, Tensor]:
    """(scale, minimum) of groups that lie in the last dimension, float16, so that codes 0 to `top` span each.

    Raises `InvalidInputError` naming the tensor for values that float16 cannot hold.
    """
    low_NG, high_NG = w_NGg.aminmax(dim=-1)
    minimum_NG = low_NG.half()
    scale_NG = ((high_NG - low_NG) / top).half()
    if not bool((torch.isfinite(minimum_NG) & torch.isfinite(scale_NG)).all()):
        raise InvalidInputError(f"{name}: values up to {w_NGg.abs().max():.3g} do not fit a float16 scale and minimum")
    return scale_NG, minimum_NG


def nearest_codes(w_NGg: Tensor, scale_NG: Tensor, minimum_NG: Tensor, top: int) -> Tensor:
    """The codes nearest to the weights on their groups' grids, in the weights' dtype."""
    scale_NG1 = scale_NG.to(w_NGg.dtype)[..., None]
    # 0 where the group is constant, or so narrow that its step rounds to zero in float16.
    step_NG1 = torch.where(scale_NG1 == 0, torch.inf, scale_NG1)
    return ((w_NGg - minimum_NG.to(w_NGg.dtype)[..., None]) / step_NG1).round_().clamp_(0, top)


def _quantize_rows(weight_NK: Tensor, group_size: int, name: str, top: int) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(torch.isfinite(weight_NK).all()):
        raise InvalidInputError(f"{name} has NaN or infinite values")
    w_NGg = weight_NK.double().view(weight_NK.shape[0], -1, group_size)
    scale_NG, minimum_NG = grid(w_NGg, top, name)
    code_NGg = nearest_codes(w_NGg, scale_NG, minimum_NG, top)
    return pack_codes(code_NGg.to(torch.uint8).view(weight_NK.shape)), scale_NG, minimum_NG
