"""The artifact of a DoRA adapter: LoRA's tensors and a magnitude for every output, as PEFT saves them.

Source: DoRA (Liu et al. 2024, arXiv:2402.09353), eq. 5: `W' = m (W + s B A) / ||W + s B A||`, the norm over each
output's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.lora import LoraSchema
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams, module_shape
from weft_registry.kinds.schema import Shapes, TensorSpec

MAGNITUDE = ".lora_magnitude_vector"
"""The end of a magnitude's name. PEFT keeps it in a module of its own, and leaves that module's `.weight` out of the
file."""


class DoraSchema(LoraSchema):
    """`A` is (r, in), `B` is (out, r) and the magnitude (out,) at every target module."""

    name = "dora"

    def tensors(self, params: LowRankParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`. Magnitudes scale whole outputs, so they are never rounded to an engine's dtype."""
        specs = super().tensors(params, base)
        for module in params.target_modules:
            n_out, _ = module_shape(module, base)
            specs[f"{PEFT_PREFIX}{module}{MAGNITUDE}"] = TensorSpec((n_out,), wide=True)
        return specs

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """See `KindSchema.reads_peft`."""
        return config.get("peft_type") == "LORA" and bool(config.get("use_dora")) and not config.get("use_qalora")

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> LowRankParams:
        """See `KindSchema.from_peft`."""
        if config.get("use_dora") is not True:
            raise InvalidInputError("adapter_config.json: use_dora: expected true or false")
        plain = {key: value for key, value in config.items() if key != "use_dora"}
        factors = {name: shape for name, shape in shapes.items() if not name.endswith(MAGNITUDE)}
        params = super().from_peft(plain, factors, base)
        expected = {
            f"{PEFT_PREFIX}{module}{MAGNITUDE}": factors[f"{PEFT_PREFIX}{module}.lora_B.weight"][:1]
            for module in params.target_modules
        }
        for name in sorted(expected.keys() | shapes.keys() - factors.keys()):
            if name not in expected:
                raise InvalidInputError(f"tensor {name[:120]!r}: a magnitude without A and B beside it")
            if name not in shapes:
                raise InvalidInputError(f"tensor {name}: missing, and adapter_config.json sets use_dora")
            if shapes[name] != expected[name]:
                raise InvalidInputError(f"{name}: shape {shapes[name]}, but lora_B gives its module {expected[name]}")
        return params

    def to_peft(self, params: LowRankParams, base: BaseSpec) -> dict[str, Any]:
        """See `KindSchema.to_peft`."""
        return {**super().to_peft(params, base), "use_dora": True}
