"""Round-to-nearest quantization of one linear weight, group-wise, with a float minimum per group.

    scale = fp16((max - min) / 15)    minimum = fp16(min)    code = clamp(round((w - minimum) / scale), 0, 15)

over each group of g inputs. Codes are chosen against the ROUNDED scale and minimum, so rounding those two costs no
more than it must. Knows nothing of files or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_adapters.int4 import Int4Weight, pack_codes
from weft_registry.errors import InvalidInputError, UnsupportedError

GROUP_SIZES = (32, 64, 128)
_CHUNK_ELEMENTS = 1 << 22


def check_options(bits: int, group_size: int) -> None:
    """Raises `UnsupportedError` for a width and `InvalidInputError` for a group size that is not offered."""
    if bits != 4:
        raise UnsupportedError(f"--bits {bits} is not supported; only 4 is")
    if group_size not in GROUP_SIZES:
        raise InvalidInputError(f"--group-size {group_size}: expected one of {', '.join(map(str, GROUP_SIZES))}")


def quantize(weight_NK: Tensor, group_size: int, name: str) -> Int4Weight:
    """The int4 form of a dense weight (N, K) of any floating dtype.

    Computed in float64, some rows at a time: the codes, and so a base's fingerprint, do not depend on the machine.
    A constant group gets scale 0 and code 0. Raises `InvalidInputError` naming the tensor for NaN, infinity, values
    that float16 cannot hold, or a K that the group size does not divide.
    """
    n_in = weight_NK.shape[1]
    if n_in % group_size:
        raise InvalidInputError(
            f"{name}: {n_in} inputs do not divide into groups of {group_size}; choose a smaller one"
        )
    rows = max(1, _CHUNK_ELEMENTS // n_in)
    parts = [_quantize_rows(chunk, group_size, name) for chunk in torch.split(weight_NK, rows)]
    return Int4Weight(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _quantize_rows(weight_NK: Tensor, group_size: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(torch.isfinite(weight_NK).all()):
        raise InvalidInputError(f"{name} has NaN or infinite values")
    w_NGg = weight_NK.double().view(weight_NK.shape[0], -1, group_size)
    low_NG, high_NG = w_NGg.aminmax(dim=-1)
    minimum_NG = low_NG.half()
    scale_NG = ((high_NG - low_NG) / 15).half()
    if not bool((torch.isfinite(minimum_NG) & torch.isfinite(scale_NG)).all()):
        raise InvalidInputError(f"{name}: values up to {w_NGg.abs().max():.3g} do not fit a float16 scale and minimum")
    scale64_NG1 = scale_NG.double()[..., None]
    # 0 where the group is constant, or so narrow that its step rounds to zero in float16.
    step_NG1 = torch.where(scale64_NG1 == 0, torch.inf, scale64_NG1)
    code_NGg = ((w_NGg - minimum_NG.double()[..., None]) / step_NG1).round_().clamp_(0, 15)
    return pack_codes(code_NGg.to(torch.uint8).view(weight_NK.shape)), scale_NG, minimum_NG
