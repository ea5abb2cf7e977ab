"""GaLore: Adam on gradients projected to a low-rank space (Zhao et al. 2024, arXiv:2403.03507, algorithm 2).

    R = P^T G  (or G P)        N = M' / (sqrt(V') + e), M and V Adam's moments of R
    W <- W - rate * scale * P N  (or N P^T)

P holds the first singular vectors of a gradient, those of its shorter side, and is taken anew every `update_proj_gap`
steps. Moments and P of an (N, K) weight take (N + 2 K) r numbers, or the like, instead of 2 N K.

Own code: the authors' package (galore-torch 1.0) cannot be imported without bitsandbytes, and keeps P in an object
that a checkpoint cannot hold without pickling it. Here the state is tensors, so a resumed run ends where an
uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class GaLoreAdamW(Optimizer):
    """AdamW; the two-dimensional parameters of a group with a `rank` below both their sizes are projected.

    A group's keys: `lr`, `weight_decay` (decoupled), and, for projection, `rank`, `update_proj_gap` and `scale`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(list(groups), defaults | {"rank": None, "update_proj_gap": 1, "scale": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient. A closure, which Adam has no use for, is not called."""
        assert closure is None, "the Trainer passes none"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        count = int(state.get("step", 0))
        projected = group["rank"] is not None and grad.ndim == 2 and group["rank"] < min(grad.shape)
        if projected and count % group["update_proj_gap"] == 0:
            state["projection"] = projection(grad, group["rank"])
        if projected:
            grad = _down(grad, state["projection"])
        if not count:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
        count += 1
        state["step"] = torch.tensor(float(count))
        (beta1, beta2), mean, square = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        update = (mean / (1 - beta1**count)) / ((square / (1 - beta2**count)).sqrt() + group["eps"])
        if projected:
            update = _up(update, state["projection"], parameter) * group["scale"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def projection(grad_NK: Tensor, rank: int) -> Tensor:
    """The first `rank` singular vectors of the gradient's shorter side: (N, r) where N < K, else (K, r).

    From the eigenvectors of the small square product, in float64: several times cheaper than the whole decomposition,
    and the signs, in which the two may differ, cancel in the update.
    """
    wide = grad_NK.double()
    square = wide @ wide.t() if wide.shape[0] < wide.shape[1] else wide.t() @ wide
    # Eigenvalues rise.
    vectors: Tensor = torch.linalg.eigh(square).eigenvectors[:, -rank:].flip(1)
    return vectors.to(grad_NK.dtype).contiguous()


def _down(grad_NK: Tensor, basis: Tensor) -> Tensor:
    return basis.t() @ grad_NK if grad_NK.shape[0] < grad_NK.shape[1] else grad_NK @ basis


def _up(update: Tensor, basis: Tensor, parameter_NK: Tensor) -> Tensor:
    return basis @ update if parameter_NK.shape[0] < parameter_NK.shape[1] else update @ basis.t()
