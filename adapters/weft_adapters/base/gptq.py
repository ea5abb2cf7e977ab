"""Calibrated quantization of one linear weight: GPTQ (Frantar et al. 2022, arXiv:2210.17323), group-wise.

Rounding a weight moves the layer's outputs; GPTQ rounds one input's column at a time and moves the columns not yet
rounded so that, over the inputs that calibration saw, the outputs move least:

    error = (w_k - rounded(w_k)) / U[k, k]        w_j -= error U[k, j]  for j > k        U = chol(H^-1), upper

H the sum of x x^T over the calibration's inputs. A group's scale and minimum follow from its weights as they stand when
its first column is rounded. Knows nothing of files or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft_adapters.base.quantize import check_groups, grid, nearest_codes
from weft_adapters.int4 import Int4Weight, pack_codes
from weft_registry.errors import InvalidInputError

_BLOCK = 128
"""Columns whose errors are spread over the rest of the weight together; a multiple of every group size."""
_DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: the paper's own value."""


def gptq(weight_NK: Tensor, hessian_KK: Tensor, group_size: int, name: str, bits: int = 4) -> Int4Weight:
    """The quantized form of a dense weight (N, K), given H (K, K).

    Computed in float32, H's inverse in float64. An input that calibration never saw is rounded to the nearest. Raises
    `InvalidInputError` naming the tensor for numbers that are not finite, values that float16 cannot hold, or a K that
    the group size does not divide.
    """
    check_groups(weight_NK.shape[1], group_size, name)
    for what, tensor in (("the weight", weight_NK), ("the calibration of", hessian_KK)):
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(f"{name}: {what} has NaN or infinite values")
    w_NK, top, block = weight_NK.float().clone(), 2**bits - 1, max(_BLOCK, group_size)
    spread_KK = _inverse_root(hessian_KK)
    codes, scales, minima = [], [], []
    for begin in range(0, w_NK.shape[1], block):
        end = min(begin + block, w_NK.shape[1])
        part_NB, errors_NB = w_NK[:, begin:end], torch.empty_like(w_NK[:, begin:end])
        inner_BB = spread_KK[begin:end, begin:end]
        for k in range(end - begin):
            if k % group_size == 0:
                scale_N1, minimum_N1 = grid(part_NB[:, None, k : k + group_size], top, name)
                scales.append(scale_N1)
                minima.append(minimum_N1)
            column_N11 = part_NB[:, None, k : k + 1]
            code_N11 = nearest_codes(column_N11, scales[-1], minima[-1], top)
            codes.append(code_N11[:, 0].to(torch.uint8))
            rounded_N1 = code_N11[:, 0] * scales[-1].float() + minima[-1].float()
            error_N = ((column_N11[:, 0] - rounded_N1) / inner_BB[k, k])[:, 0]
            part_NB[:, k:] -= error_N[:, None] * inner_BB[k, k:]
            errors_NB[:, k] = error_N
        w_NK[:, end:] -= errors_NB @ spread_KK[begin:end, end:]
    return Int4Weight(pack_codes(torch.cat(codes, dim=1)), torch.cat(scales, dim=1), torch.cat(minima, dim=1))


def _inverse_root(hessian_KK: Tensor) -> Tensor:
    """U, upper triangular, with U^T U = (H + damping)^-1, in float32."""
    h_KK = hessian_KK.double().clone()
    diagonal = h_KK.diagonal()
    diagonal += _DAMPING * diagonal.mean()
    # Nothing is known about these: their errors are spread over nobody.
    diagonal[diagonal == 0] = 1
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(h_KK))
    root_KK: Tensor = torch.linalg.cholesky(inverse_KK, upper=True)
    return root_KK.float()
