"""The two GGUF block formats that are kept as they are: bytes moved, no arithmetic.

Formats of ggml-common.h, `block_q4_1` and `block_q8_0`:

Q4_1, 32 weights in 20 bytes: d (fp16), m (fp16), 16 bytes of codes; byte j holds weight j in its low four bits
and weight j + 16 in its high four bits.          w = d * q + m
Q8_0, 32 weights in 34 bytes: d (fp16), 32 signed bytes.                             w = d * q
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Weights per block, in both formats."""


def split_q4_1(
    blocks_NB: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """(codes uint8 (N, K/2), even input in the low bits; d fp16 (N, G); m fp16 (N, G)) of rows of Q4_1 bytes."""
    blocks_NG20 = blocks_NB.reshape(len(blocks_NB), -1, 20)
    d_NG = np.ascontiguousarray(blocks_NG20[..., 0:2]).view(np.float16)[..., 0]
    m_NG = np.ascontiguousarray(blocks_NG20[..., 2:4]).view(np.float16)[..., 0]
    bytes_NGj = blocks_NG20[..., 4:]
    codes_NGk = np.concatenate((bytes_NGj & 0xF, bytes_NGj >> 4), axis=-1)
    packed = codes_NGk[..., 0::2] | (codes_NGk[..., 1::2] << 4)
    return packed.reshape(len(blocks_NB), -1), d_NG, m_NG


def split_q8_0(blocks_NB: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """(codes int8 (N, K), d fp16 (N, K/32)) of rows of Q8_0 bytes."""
    blocks_NG34 = blocks_NB.reshape(len(blocks_NB), -1, 34)
    d_NG = np.ascontiguousarray(blocks_NG34[..., 0:2]).view(np.float16)[..., 0]
    codes_NGk = np.ascontiguousarray(blocks_NG34[..., 2:]).view(np.int8)
    return codes_NGk.reshape(len(blocks_NB), -1), d_NG


def unpermute_rows(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Undoes llama.cpp's reordering of q and k rows for its interleaved rotary embedding.

    convert_hf_to_gguf.py stores row `2 i + s` of a head where Hugging Face has row `s * head_dim/2 + i`, s in {0, 1}.
    Rows only: codes, scales, minima and biases reorder alike.
    """
    half = len(rows) // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
