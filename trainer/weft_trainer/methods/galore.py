"""Full training with GaLore's optimizer (Zhao et al. 2024, arXiv:2403.03507); served as an extracted LoRA."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from weft_registry.base import BaseSpec
from weft_trainer.config.adapter import FullOptions, GaLoreOptions
from weft_trainer.config.run import TrainingConfig
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.tokenization import TextEncoder
from weft_trainer.methods.full import FullMethod, FullModel, FullParams, possible_weights
from weft_trainer.methods.galore_optimizer import GaLoreAdamW
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.modeling.base import TrainingBase


class GaLoreMethod(FullMethod):
    """`method: galore`."""

    name = "galore"

    def params(self, options: FullOptions, base: BaseSpec, encoder: TextEncoder) -> FullParams:
        """See `Method.params`. Raises `ConfigError` for a rank at which nothing is projected."""
        assert isinstance(options, GaLoreOptions), "the method decides its options"
        params = super().params(options, base, encoder)
        trained = set(possible_weights(params, base))
        sides = [min(shape) for module, shape in base.linears.items() if f"{module}.weight" in trained]
        if not any(options.rank < side for side in sides):
            most = max(sides, default=0) - 1
            why = f"{options.rank}, but no linear that is trained has more rows and more columns than that"
            lower = f"lower it to at most {most}, or " if most > 0 else ""
            raise ConfigError(
                "adapter.rank", f"{why}, so that nothing would be projected; {lower}take method: full, which that is"
            )
        return params

    def attach(
        self, base: TrainingBase, params: FullParams, options: FullOptions, encoder: TextEncoder
    ) -> AdaptedModel:
        """The base's own values."""
        assert isinstance(options, GaLoreOptions), "the method decides its options"
        return GaLoreModel(base, params, options)


class GaLoreModel(FullModel):
    """A fully trained model with an optimizer of its own."""

    def __init__(self, base: TrainingBase, params: FullParams, options: GaLoreOptions) -> None:
        super().__init__(base, params)
        self._options = options

    def optimizer(self, training: TrainingConfig) -> Optimizer:
        """The linears are projected; everything else is trained by plain AdamW. Vectors do not decay."""
        options, linears = self._options, {f"{module}.weight" for module in self.base.stored.spec.linears}
        projected = [weight for name, weight in self.weights.items() if name in linears]
        matrices = [weight for name, weight in self.weights.items() if name not in linears and weight.ndim == 2]
        vectors = [weight for weight in self.weights.values() if weight.ndim == 1]
        space = {"rank": options.rank, "update_proj_gap": options.update_proj_gap, "scale": options.scale}
        groups: list[dict[str, Any]] = [
            {"params": projected, **space},
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return GaLoreAdamW(
            [group for group in groups if group["params"]],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
        )
