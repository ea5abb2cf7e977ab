"""The artifact of a LoRA adapter: PEFT's tensors. Source: arXiv:2106.09685, eq. 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams, low_rank_block, module_shape, read_low_rank
from weft_registry.kinds.low_rank_peft import low_rank_differences, low_rank_from_peft, low_rank_to_peft
from weft_registry.kinds.schema import BlockReader, Shapes, TensorSpec


class LoraSchema:
    """`A` is (r, in), `B` is (out, r) at every target module."""

    name = "lora"

    def parse(self, block: Mapping[str, Any]) -> LowRankParams:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        params = read_low_rank(reader)
        reader.end()
        return params

    def block(self, params: LowRankParams) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return low_rank_block(params)

    def tensors(self, params: LowRankParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`."""
        specs: dict[str, TensorSpec] = {}
        for module in params.target_modules:
            rank, (n_out, n_in) = params.rank(module), module_shape(module, base)
            specs[f"{PEFT_PREFIX}{module}.lora_A.weight"] = TensorSpec((rank, n_in))
            specs[f"{PEFT_PREFIX}{module}.lora_B.weight"] = TensorSpec((n_out, rank))
        return specs

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """See `KindSchema.reads_peft`."""
        return config.get("peft_type") == "LORA" and not config.get("use_qalora") and not config.get("use_dora")

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> LowRankParams:
        """See `KindSchema.from_peft`."""
        return self.parse(self.block(low_rank_from_peft(config, shapes, base)))

    def to_peft(self, params: LowRankParams, base: BaseSpec) -> dict[str, Any]:
        """See `KindSchema.to_peft`."""
        return low_rank_to_peft(params)

    def differences(self, declared: LowRankParams, found: LowRankParams) -> list[str]:
        """See `KindSchema.differences`."""
        return low_rank_differences(declared, found)
