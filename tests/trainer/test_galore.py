"""GaLore's optimizer against its algorithm in float64, and against torch's AdamW where nothing is projected."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_models import AddedBase
from weft_trainer.config.adapter import GaLoreOptions
from weft_trainer.config.strict import ConfigError
from weft_trainer.methods import METHODS
from weft_trainer.methods.galore_optimizer import GaLoreAdamW, projection

RATE, DECAY, SCALE, GAP, RANK = 0.01, 0.1, 0.5, 3, 4


def reference(weight: np.ndarray, grads: list[np.ndarray], bases: list[np.ndarray]) -> np.ndarray:
    """Algorithm 2 of the paper. `bases` are the optimizer's own, one a step: of those that span the space of the first
    singular vectors it may have any, and its moments go on in the next one whichever that is."""
    m, v = np.zeros(1), np.zeros(1)
    left = weight.shape[0] < weight.shape[1]
    for t, grad in enumerate(grads):
        basis = bases[t // GAP * GAP]
        if t % GAP == 0:
            u, _, vh = np.linalg.svd(grad, full_matrices=False)
            wanted = u[:, :RANK] if left else vh[:RANK].T
            np.testing.assert_allclose(basis @ basis.T, wanted @ wanted.T, atol=1e-5)
        low = basis.T @ grad if left else grad @ basis
        m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
        update = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        whole = basis @ update if left else update @ basis.T
        weight = weight * (1 - RATE * DECAY) - RATE * SCALE * whole
    return weight


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_the_steps_are_the_papers(shape: tuple[int, int]) -> None:
    weight = torch.nn.Parameter(torch.randn(shape))
    start = weight.detach().numpy().astype(np.float64)
    optimizer = GaLoreAdamW(
        [{"params": [weight], "rank": RANK, "update_proj_gap": GAP, "scale": SCALE}], lr=RATE, weight_decay=DECAY
    )
    grads = [torch.randn(shape) for _ in range(3 * GAP)]
    bases = []
    for grad in grads:
        weight.grad = grad
        optimizer.step()
        bases.append(optimizer.state[weight]["projection"].numpy().astype(np.float64))
    wanted = reference(start, [grad.numpy().astype(np.float64) for grad in grads], bases)
    np.testing.assert_allclose(weight.detach().numpy(), wanted, atol=1e-5)


def test_the_space_is_chosen_again_every_gap_and_holds_the_first_singular_vectors() -> None:
    weight = torch.nn.Parameter(torch.randn(12, 20))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": RANK, "update_proj_gap": GAP, "scale": SCALE}], lr=RATE)
    bases = []
    for _ in range(2 * GAP):
        weight.grad = torch.randn(12, 20)
        optimizer.step()
        bases.append(optimizer.state[weight]["projection"])
        if len(bases) in (1, GAP + 1):
            u = torch.linalg.svd(weight.grad.double()).U[:, :RANK]
            torch.testing.assert_close(bases[-1].double() @ bases[-1].double().t(), u @ u.t(), atol=1e-5, rtol=1e-4)
    same = [torch.equal(bases[i], bases[i + 1]) for i in range(2 * GAP - 1)]
    assert same == [True, True, False, True, True]


@pytest.mark.parametrize(("rank", "shape"), [(None, (12, 20)), (12, (12, 20)), (4, (12,))])
def test_what_is_not_projected_is_trained_by_adamw(rank: int | None, shape: tuple[int, ...]) -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = GaLoreAdamW([{"params": [ours], "rank": rank}], lr=RATE, weight_decay=DECAY)
    torchs = torch.optim.AdamW([theirs], lr=RATE, weight_decay=DECAY)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(shape)
        mine.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs)


def test_the_state_is_small_and_is_saved_without_pickles() -> None:
    weight = torch.nn.Parameter(torch.randn(64, 256))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": RANK, "update_proj_gap": GAP, "scale": SCALE}], lr=RATE)
    weight.grad = torch.randn(64, 256)
    optimizer.step()
    numbers = sum(tensor.numel() for tensor in optimizer.state[weight].values())
    assert numbers == 2 * RANK * 256 + 64 * RANK + 1
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    # Only tensors and plain values load like this.
    state = torch.load(file, weights_only=True)
    again = torch.nn.Parameter(weight.detach().clone())
    resumed = GaLoreAdamW([{"params": [again], "rank": RANK, "update_proj_gap": GAP, "scale": SCALE}], lr=RATE)
    resumed.load_state_dict(state)
    for parameter, step in ((weight, optimizer), (again, resumed)):
        parameter.grad = torch.ones(64, 256)
        step.step()
    assert torch.equal(weight, again)


def test_a_rank_at_which_nothing_is_projected_is_refused_with_the_largest_that_is_of_use(
    deep_base: AddedBase,
) -> None:
    spec = deep_base.stored.spec
    # Keys and values have 32 outputs, everything else 64 or more on both sides.
    assert {min(shape) for shape in spec.linears.values()} == {32, 64}

    def params(rank: int, *unfreeze: str) -> object:
        encoder: Any = None
        return METHODS["galore"].params(GaLoreOptions(rank=rank, unfreeze=unfreeze), spec, encoder)

    assert params(63)
    assert params(31, "*.k_proj")
    with pytest.raises(ConfigError, match=r"^adapter\.rank: 64, .* lower it to at most 63, or take method: full"):
        params(64)
    with pytest.raises(ConfigError, match=r"^adapter\.rank: 32, .* at most 31, or take method: full"):
        params(32, "*.k_proj", "*norm")
    with pytest.raises(ConfigError, match=r"^adapter\.rank: 4, .* projected; take method: full"):
        params(4, "*norm")


def test_the_projection_is_orthonormal() -> None:
    basis = projection(torch.randn(30, 50), 7)
    torch.testing.assert_close(basis.t() @ basis, torch.eye(7), atol=1e-5, rtol=0)
