"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-rotated layout of the Llama family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class RotaryTable:
    """Cosines and signed sines of every position, computed in float32 and kept in the engine's dtype."""

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: Mapping[str, Any] | None,
        positions: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        frequency_F = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        frequency_F = _scale(frequency_F, scaling)
        angle_PF = torch.arange(positions, dtype=torch.float32)[:, None] * frequency_F
        cos_PD = torch.cat((angle_PF.cos(), angle_PF.cos()), dim=-1)
        # The rotation takes (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin). With the sign in the table, the second
        # term is a roll by half a head times the sine.
        sin_PD = torch.cat((-angle_PF.sin(), angle_PF.sin()), dim=-1)
        self._cos_PD = cos_PD.to(device, dtype)
        self._sin_PD = sin_PD.to(device, dtype)

    def at(self, position_T: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, signed sin) for each row, (T, 1, D) each."""
        return self._cos_PD[position_T][:, None], self._sin_PD[position_T][:, None]

    def halves(self) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the first half of a head, which the second half shares: (positions, D/2) each, contiguous."""
        half = self._cos_PD.shape[1] // 2
        return self._cos_PD[:, :half].contiguous(), self._sin_PD[:, half:].contiguous()


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotates every head of `x` by its row's position."""
    return torch.addcmul(x_THD * cos_T1D, x_THD.roll(x_THD.shape[-1] // 2, dims=-1), sin_T1D)


def _scale(frequency_F: Tensor, scaling: Mapping[str, Any] | None) -> Tensor:
    kind = (scaling or {}).get("rope_type", "default")
    if scaling is None or kind == "default":
        return frequency_F
    if kind == "linear":
        return frequency_F / float(scaling["factor"])
    if kind != "llama3":
        raise ValueError(f"rope scaling {kind!r} is not implemented")
    # Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    wavelength_F = 2 * math.pi / frequency_F
    blend_F = ((original / wavelength_F - low) / (high - low)).clamp(0, 1)
    blended_F = (1 - blend_F) * frequency_F / factor + blend_F * frequency_F
    stretched_F = torch.where(wavelength_F > original / low, frequency_F / factor, blended_F)
    return torch.where(wavelength_F < original / high, frequency_F, stretched_F)
