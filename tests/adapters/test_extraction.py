"""Extraction against float64 singular values computed another way, and against deltas whose rank is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from weft_adapters.extraction import Extracted, Truncation, extract
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX

MODULE = "model.layers.0.mlp.up_proj"


def product(extracted: Extracted, module: str = MODULE) -> Tensor:
    a, b = (extracted.tensors[f"{PEFT_PREFIX}{module}.lora_{x}.weight"] for x in "AB")
    return extracted.params.scaling(module) * b.double() @ a.double()


def low_rank_delta(rank: int, n_out: int = 48, n_in: int = 96) -> Tensor:
    return torch.randn(n_out, rank, dtype=torch.float64) @ torch.randn(rank, n_in, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_a_delta_of_true_rank_is_recovered_to_float_rounding(shape: tuple[int, int]) -> None:
    delta = low_rank_delta(5, *shape)
    extracted = extract([(MODULE, delta)], Truncation(rank=16))
    assert extracted.params.rank(MODULE) == 5, "more singular values are rounding, not signal"
    torch.testing.assert_close(product(extracted), delta, rtol=0, atol=float(delta.abs().max()) * 1e-6)
    assert extracted.error < 1e-6


def test_the_error_is_that_of_the_best_approximation_there_is() -> None:
    delta = torch.randn(40, 64)
    singular = np.linalg.svd(delta.numpy().astype(np.float64), compute_uv=False)
    best = np.sqrt((singular[7:] ** 2).sum() / (singular**2).sum())
    extracted = extract([(MODULE, delta)], Truncation(rank=7))
    assert extracted.error == pytest.approx(best, rel=1e-6)
    found = float((delta.double() - product(extracted)).norm() / delta.double().norm())
    assert found == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_keeps_the_fewest_singular_values_that_hold_it(energy: float) -> None:
    delta = torch.randn(32, 64)
    squares = np.linalg.svd(delta.numpy().astype(np.float64), compute_uv=False) ** 2
    rank = extract([(MODULE, delta)], Truncation(energy=energy)).params.rank(MODULE)
    assert squares[:rank].sum() / squares.sum() >= energy > squares[: rank - 1].sum() / squares.sum()


def test_ranks_differ_by_module_and_the_error_is_over_all_of_them() -> None:
    deltas = {f"model.layers.{i}.mlp.up_proj": low_rank_delta(rank) for i, rank in enumerate((2, 2, 6))}
    extracted = extract(deltas.items(), Truncation(energy=1.0))
    assert {m: extracted.params.rank(m) for m in deltas} == dict(zip(deltas, (2, 2, 6), strict=True))
    assert extracted.params.rank_pattern == {"model.layers.2.mlp.up_proj": 6}
    assert {extracted.params.scaling(module) for module in deltas} == {1.0}
    short = extract(deltas.items(), Truncation(rank=2))
    left = sum(float((d - product(short, m)).norm()) ** 2 for m, d in deltas.items())
    whole = sum(float(d.norm()) ** 2 for d in deltas.values())
    assert short.error == pytest.approx((left / whole) ** 0.5, rel=1e-6)


def test_a_module_that_did_not_change_is_not_adapted() -> None:
    other = "model.layers.1.mlp.up_proj"
    extracted = extract([(MODULE, torch.zeros(8, 16)), (other, low_rank_delta(1, 8, 16))], Truncation(rank=4))
    assert extracted.params.target_modules == (other,)
    assert extracted.errors[MODULE].relative == 0.0


def test_a_delta_that_is_not_finite_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=MODULE):
        extract([(MODULE, torch.full((4, 4), torch.nan))], Truncation(rank=1))


def test_an_energy_beyond_the_highest_rank_names_the_module_and_the_way_out() -> None:
    with pytest.raises(InvalidInputError, match=rf"{MODULE}: an energy of 1 takes rank 1025.*original"):
        extract([(MODULE, torch.eye(1025))], Truncation(energy=1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Truncation(),
        lambda: Truncation(rank=4, energy=0.5),
        lambda: Truncation(rank=0),
        lambda: Truncation(rank=1025),
        lambda: Truncation(energy=0.0),
        lambda: Truncation(energy=1.1),
    ],
)
def test_a_truncation_is_one_number_within_its_bounds(make: Callable[[], Truncation]) -> None:
    with pytest.raises(InvalidInputError):
        make()
