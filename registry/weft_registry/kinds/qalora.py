"""The artifact of a QA-LoRA adapter: PEFT's tensor names, with A over pooled inputs.

Source: QA-LoRA (Xu et al. 2023, arXiv:2309.14717), alg. 1. Here the pooled input is the SUM over each group of the
base's quantization, so that `(alpha / r) B A` adds to the group minima without any other factor.

Others pool by the mean: the paper's repository computes `s B A mean(x)`, and PEFT `s B A mean(x) * (in / g)`. With g
inputs to a group `mean(x) = sum(x) / g`, so only alpha changes: to `alpha / g`, and to `alpha * (in / g) / g`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams, low_rank_block, module_shape, read_low_rank
from weft_registry.kinds.low_rank_peft import (
    low_rank_differences,
    low_rank_from_peft,
    low_rank_to_peft,
    with_alphas,
)
from weft_registry.kinds.peft_keys import whole
from weft_registry.kinds.schema import BlockReader, Shapes, TensorSpec


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

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """See `KindSchema.reads_peft`."""
        return config.get("peft_type") == "LORA" and bool(config.get("use_qalora"))

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> QaLoraParams:
        """See `KindSchema.from_peft`. A file of the paper's repository does not state its group size: then it is the
        base's."""
        if config.get("use_qalora"):
            group = whole(config, "qalora_group_size")
        elif base is not None:
            group = base.fingerprint.quant.group_size
        else:
            raise InvalidInputError("adapter_config.json: no qalora_group_size: say which base the adapter is for")
        params = low_rank_from_peft(config, shapes, base)
        alphas = {}
        for module in params.target_modules:
            # A is (r, groups): its width tells how many groups there are.
            groups = shapes[f"{PEFT_PREFIX}{module}.lora_A.weight"][1]
            factor = {"peft": groups / group, "mean": 1 / group, "sum": 1.0}[pooling]
            alphas[module] = params.alpha_of(module) * factor
        return self.parse(self.block(QaLoraParams(**vars(with_alphas(params, alphas)), group_size=group)))

    def to_peft(self, params: QaLoraParams, base: BaseSpec) -> dict[str, Any]:
        """See `KindSchema.to_peft`. PEFT's scaling depends on how many inputs a module has, so every width gets its own
        alpha."""
        alphas = {}
        for module in params.target_modules:
            _, n_in = module_shape(module, base)
            assert n_in is not None
            alphas[module] = params.alpha_of(module) * params.group_size / (n_in / params.group_size)
        return {
            **low_rank_to_peft(with_alphas(params, alphas)),
            "use_qalora": True,
            "qalora_group_size": params.group_size,
        }

    def differences(self, declared: QaLoraParams, found: QaLoraParams) -> list[str]:
        """See `KindSchema.differences`."""
        groups = (declared.group_size, found.group_size)
        other = [] if groups[0] == groups[1] else [f"qalora_group_size is {groups[1]}, in the manifest {groups[0]}"]
        return other + low_rank_differences(declared, found)
