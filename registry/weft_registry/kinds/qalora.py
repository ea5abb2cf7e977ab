"""The artifact of a QA-LoRA adapter: PEFT's tensor names, with A over pooled inputs.

Source: QA-LoRA (Xu et al. 2023, arXiv:2309.14717), alg. 1. Here the pooled input is the SUM over each group of the
base's quantization, so that `(alpha / r) B A` adds to the group minima without any other factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams, low_rank_block, module_shape, read_low_rank
from weft_registry.kinds.schema import BlockReader, TensorSpec


@dataclass(frozen=True)
class QaLoraParams(LowRankParams):
    """Low-rank parameters over inputs pooled by `group_size`."""

    group_size: int
    """Inputs summed into one: the group size of the base's quantization."""


class QaLoraSchema:
    """`A` is (r, in / group_size), `B` is (out, r) at every target module."""

    name = "qalora"

    def parse(self, block: Mapping[str, Any]) -> QaLoraParams:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        group_size = reader.integer("group_size")
        # The stored form always pools by sum; the key says so to whoever reads the file elsewhere.
        reader.choice("pooling", ("sum",))
        params = QaLoraParams(**vars(read_low_rank(reader)), group_size=group_size)
        reader.end()
        return params

    def block(self, params: QaLoraParams) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return {**low_rank_block(params), "group_size": params.group_size, "pooling": "sum"}

    def tensors(self, params: QaLoraParams, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`."""
        group = params.group_size
        if base is not None and group != base.fingerprint.quant.group_size:
            raise InvalidInputError(
                f"adapter.group_size: {group}, but the base {base.fingerprint.id} is quantized in groups of "
                f"{base.fingerprint.quant.group_size}: train again with that group size"
            )
        specs: dict[str, TensorSpec] = {}
        for module in params.target_modules:
            rank, (n_out, n_in) = params.rank(module), module_shape(module, base)
            if n_in is not None and n_in % group:
                raise InvalidInputError(f"adapter.group_size: {group} does not divide the {n_in} inputs of {module}")
            specs[f"{PEFT_PREFIX}{module}.lora_A.weight"] = TensorSpec((rank, n_in and n_in // group))
            specs[f"{PEFT_PREFIX}{module}.lora_B.weight"] = TensorSpec((n_out, rank))
        return specs
