"""`weft_int4` as vLLM's linear method: one layer's parameters, its product, and what a merge has put over it.

vLLM's own loaders cut every tensor for tensor parallelism and for fused layers; a merged tensor goes the same way, so
that this file knows neither ranks nor slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method
from vllm.model_executor.parameter import GroupQuantScaleParameter, ModelWeightParameter, PackedvLLMParameter

from weft_adapters.products import Product, dense_product
from weft_server.vllm_engine.base.kernels import ZeroKernel, choose_kernel
from weft_server.vllm_engine.base.names import MINIMUM, PACKED, SCALE

if TYPE_CHECKING:
    from weft_server.vllm_engine.base.config import WeftInt4Config


@register_weight_loader_v2_supported_method
class WeftInt4LinearMethod(LinearMethodBase):  # type: ignore[misc]
    """One linear layer over a stored base. Owns the layer's kernel and its merge.

    Life: `create_weights`, vLLM loads, `process_weights_after_loading`; then any number of `apply`, and between steps
    `merge_zeros`, `merge_dense` and `unmerge`.
    """

    def __init__(self, config: WeftInt4Config, prefix: str, kernel: str, lora_slots: int | None = None) -> None:
        """`lora_slots`: see `names.LORA_SLOTS_SETTING`."""
        self.prefix = prefix
        self.group_size = config.group_size
        self.lora_slots = lora_slots
        self._config = config
        self._asked = kernel
        self._pristine_NG: Tensor | None = None
        self._dense: Product | None = None
        self._bias_N: Tensor | None = None

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """See vLLM. Raises `ValueError` when tensor parallelism would split a group."""
        group_size = self.group_size
        if input_size_per_partition % group_size:
            raise ValueError(
                f"{self.prefix}: {input_size_per_partition} inputs a worker are not whole groups of {group_size}; "
                "use a smaller tensor_parallel_size"
            )
        self._loader: Callable[..., None] = extra_weight_attrs["weight_loader"]
        self._dtype = params_dtype
        self._full_KN = (input_size, output_size)
        self._part_KN = (input_size_per_partition, sum(output_partition_sizes))
        n_in, n_out = self._part_KN
        packed = PackedvLLMParameter(
            data=torch.empty(n_out, n_in // 8, dtype=torch.int32),
            input_dim=1,
            output_dim=0,
            packed_dim=1,
            packed_factor=8,
            weight_loader=self._loader,
        )
        # vLLM's LoRA layers know a quantized layer by this name of its weight.
        layer.register_parameter(PACKED, packed)
        layer.register_parameter(SCALE, self._group_parameter(torch.float16))
        layer.register_parameter(MINIMUM, self._group_parameter(torch.float16))

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """See vLLM. Raises `UnsupportedError` when no kernel takes the layer exactly."""
        packed, scale, minimum = (layer.get_parameter(name) for name in (PACKED, SCALE, MINIMUM))
        zero_NG = minimum.data.float() + 8 * scale.data.float()
        delattr(layer, MINIMUM)
        bias = getattr(layer, "bias", None)
        # Some of vLLM's kernels put the layer's own into an order of theirs, which a dense merge does not have.
        self._bias_N = None if bias is None else bias.data.clone()
        self.kernel: ZeroKernel = choose_kernel(
            self._asked, self._full_KN, self._part_KN, self.group_size, self._dtype, packed.device
        )
        self.kernel.prepare(layer, zero_NG)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See vLLM: `x W^T + bias`."""
        return self.apply_pooled(layer, x, None, bias)

    def apply_pooled(self, layer: nn.Module, x: Tensor, pooled_TG: Tensor | None, bias: Tensor | None) -> Tensor:
        """As `apply`, for whoever has the sums of each group of inputs already: the base may need them too."""
        if self._dense is None:
            return self.kernel.apply(layer, x, bias, pooled_TG)
        y = self._dense(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        # None where another worker adds it.
        return y if bias is None or self._bias_N is None else y + self._bias_N

    def zeros(self, layer: nn.Module) -> Tensor:
        """The zeros in use, (N, G) of this worker's share."""
        return self.kernel.zeros(layer)

    @property
    def fingerprint(self) -> str:
        """The weights' digest of the base that this is a layer of."""
        return self._config.fingerprint

    @property
    def merged_bytes(self) -> int:
        """Bytes that the merge holds beside the base."""
        held = 0 if self._pristine_NG is None else self._pristine_NG.nbytes
        return held + (0 if self._dense is None else self._dense.size_bytes)

    def merge_zeros(self, layer: nn.Module, parts: Mapping[str | int | None, Tensor]) -> None:
        """Puts other zeros in place, rounded once from float32: what a merged QA-LoRA adapter is.

        `parts` are the whole (N, G) of every fused module, by vLLM's shard id; None where the layer is one module.
        """
        zeros_NG = self.zeros(layer)
        staged = self._load(self._group_parameter(torch.float32, zeros_NG.device), parts)
        if self._pristine_NG is None:
            # On the host: it is read once, when the merge is over.
            self._pristine_NG = zeros_NG.to("cpu", copy=True)
        zeros_NG.copy_(staged)

    def merge_dense(self, layer: nn.Module, parts: Mapping[str | int | None, Tensor]) -> None:
        """Computes with a dense weight from now on, (N, K) of every fused module: what a merged LoRA adapter is."""
        n_in, n_out = self._part_KN
        staged = ModelWeightParameter(
            data=torch.empty(n_out, n_in, dtype=self._dtype, device=self.zeros(layer).device),
            input_dim=1,
            output_dim=0,
            weight_loader=self._loader,
        )
        self._dense = dense_product(self._load(staged, parts))

    def unmerge(self, layer: nn.Module) -> None:
        """Back to the base's own bits. Does nothing where nothing is merged."""
        self._dense = None
        if self._pristine_NG is not None:
            self.zeros(layer).copy_(self._pristine_NG)
            self._pristine_NG = None

    def _group_parameter(self, dtype: torch.dtype, device: torch.device | None = None) -> GroupQuantScaleParameter:
        n_in, n_out = self._part_KN
        return GroupQuantScaleParameter(
            data=torch.empty(n_out, n_in // self.group_size, dtype=dtype, device=device),
            input_dim=1,
            output_dim=0,
            weight_loader=self._loader,
        )

    def _load(self, parameter: Any, parts: Mapping[str | int | None, Tensor]) -> Tensor:
        for shard, tensor in parts.items():
            self._loader(parameter, tensor) if shard is None else self._loader(parameter, tensor, shard)
        data: Tensor = parameter.data
        return data
