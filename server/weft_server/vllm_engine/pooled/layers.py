"""vLLM's LoRA layers over `weft_int4`, with a second A in every slot: one that reads the sums of each group of inputs.

    h = A x          rows that wear a LoRA adapter
    h = A pool(x)    rows that wear a QA-LoRA adapter
    y = W x + B h    both, in one product

B, the cutting of tensors for tensor parallelism and the kernels are vLLM's own. A row belongs to one adapter, so each
row of `h` comes from one of two shrinks, and a shrink that no row needs is not run.

Legend: T rows, R those that wear an adapter over whole inputs, K inputs, G groups, r rank, n the fused modules of a
layer; all of this worker's share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import (
    MergedColumnParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    RowParallelLinearWithLoRA,
)

from weft_server.vllm_engine.base.kernels import pool
from weft_server.vllm_engine.base.linear import WeftInt4LinearMethod
from weft_server.vllm_engine.pooled.rows import WornRows


class PooledLayer:
    """Goes before one of vLLM's LoRA layers. The stacks that vLLM knows (`lora_a_stacked`) are those over pooled
    inputs, in every slot; `whole_a_stacked` are those over whole ones, in the first `lora_slots`."""

    base_layer: Any
    input_size: int
    tp_size: int
    tp_rank: int
    lora_a_stacked: tuple[Tensor, ...]
    lora_b_stacked: tuple[Tensor, ...]
    output_slices: tuple[int, ...]
    punica_wrapper: Any
    rows: WornRows
    """Set by the manager once all layers are wrapped."""

    @classmethod
    def can_replace_layer(cls, source_layer: Any, **rest: Any) -> bool:
        """See vLLM: a layer over a stored base, where the engine asks for pooled slots."""
        method = getattr(source_layer, "quant_method", None)
        wanted = isinstance(method, WeftInt4LinearMethod) and method.lora_slots is not None
        return wanted and super().can_replace_layer(source_layer=source_layer, **rest)  # type: ignore[misc]

    @property
    def method(self) -> WeftInt4LinearMethod:
        """The layer's own."""
        method: WeftInt4LinearMethod = self.base_layer.quant_method
        return method

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        """See vLLM."""
        assert self.method.lora_slots is not None, "a pooled layer is there because it was asked for"
        self.lora_slots = self.method.lora_slots
        whole = self.input_size
        self.input_size = whole // self.method.group_size
        super().create_lora_weights(max_loras, lora_config, model_config)  # type: ignore[misc]
        self.input_size = whole
        self.whole_a_stacked = tuple(
            stack.new_zeros(self.lora_slots, 1, stack.shape[2], whole) for stack in self.lora_a_stacked
        )

    def reset_lora(self, index: int) -> None:
        """See vLLM."""
        super().reset_lora(index)  # type: ignore[misc]
        if index < self.lora_slots:
            for stack in self.whole_a_stacked:
                stack[index] = 0

    def reads_whole(self, lora_a: Any) -> bool:
        """Whether an adapter's A (or several, or None, of a fused layer's modules) reads whole inputs and not pooled
        ones. Raises `ValueError` for a width that is neither, and for both at once."""
        widths = {a.shape[1] for a in (lora_a if isinstance(lora_a, list) else [lora_a]) if a is not None}
        whole = self.base_layer.input_size
        # vLLM's own dummies are as wide as this worker's share.
        pooled = {whole // self.method.group_size, self.lora_a_stacked[0].shape[-1]}
        if widths == {whole}:
            return True
        if widths <= pooled:
            return False
        raise ValueError(f"A has {sorted(widths)} inputs; the layer has {whole}, in groups of {self.method.group_size}")

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """See vLLM: one adapter's A and B, whole, or lists of a fused layer's modules."""
        if not self.reads_whole(lora_a):
            super().set_lora(index, lora_a, lora_b)  # type: ignore[misc]
            return
        parts = lora_a if isinstance(lora_a, list) else [lora_a]
        # B as vLLM cuts it; an A without columns leaves the pooled stack at zero.
        nothing = [None if a is None else a[:, :0] for a in parts]
        super().set_lora(index, nothing if isinstance(lora_a, list) else nothing[0], lora_b)  # type: ignore[misc]
        for stack, a_rK in zip(self.whole_a_stacked, parts, strict=True):
            if a_rK is not None:
                own_rK = a_rK[:, self.inputs_of(stack)]
                stack[index, 0, : own_rK.shape[0]].copy_(own_rK, non_blocking=True)

    def inputs_of(self, stack: Tensor) -> slice:
        """The inputs that this worker has of a layer's, in the units of `stack`: all of them, unless the layer's inputs
        are shared out."""
        return slice(None)

    def _apply_sync(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        pooled_TG = pool(x, self.method.group_size) if self.rows.any_pooled else None
        return self._add(x, self.method.apply_pooled(self.base_layer, x, pooled_TG, bias), pooled_TG)

    def _apply_lora_to_output(self, x: Tensor, output: Tensor) -> Tensor:
        pooled_TG = pool(x, self.method.group_size) if self.rows.any_pooled else None
        return self._add(x, output, pooled_TG)

    def _add(self, x: Tensor, y: Tensor, pooled_TG: Tensor | None) -> Tensor:
        if not (self.rows.any_whole or self.rows.any_pooled):
            return y
        x_TK = x.reshape(-1, x.shape[-1])
        h_nTr = self._zeros(x_TK)
        if pooled_TG is not None:
            self.punica_wrapper.add_shrink(h_nTr, pooled_TG, self.lora_a_stacked, 1.0)
        if self.rows.any_whole:
            x_RK = self.rows.take(x_TK)
            whole_nRr = self._zeros(x_RK)
            self.rows.whole.add_shrink(whole_nRr, x_RK, self.whole_a_stacked, 1.0)
            # A shrink leaves anything in rows that are not its own, NaN included: they are replaced, not added.
            h_nTr = self.rows.put(whole_nRr, h_nTr)
        self.punica_wrapper.add_expand(
            y.view(-1, y.shape[-1]), h_nTr, self.lora_b_stacked, self.output_slices, add_inputs=True
        )
        return y

    def _zeros(self, x: Tensor) -> Tensor:
        """What an input shrinks to, before it does: vLLM's kernels want float32."""
        shape = (len(self.lora_b_stacked), x.shape[0], self.lora_b_stacked[0].shape[-1])
        return torch.zeros(shape, dtype=torch.float32, device=x.device)


class PooledGateUp(PooledLayer, MergedColumnParallelLinearWithLoRA):  # type: ignore[misc]
    """gate_proj and up_proj: outputs are shared out, every worker has all inputs."""


class PooledQKV(PooledLayer, MergedQKVParallelLinearWithLoRA):  # type: ignore[misc]
    """q_proj, k_proj and v_proj: heads are shared out, every worker has all inputs."""


class PooledRow(PooledLayer, RowParallelLinearWithLoRA):  # type: ignore[misc]
    """o_proj and down_proj: inputs are shared out, in whole groups (`WeftInt4LinearMethod` sees to it)."""

    def inputs_of(self, stack: Tensor) -> slice:
        """See `PooledLayer`."""
        share = stack.shape[-1]
        return slice(self.tp_rank * share, (self.tp_rank + 1) * share)

    def slice_lora_a(self, lora_a: Tensor) -> Tensor:
        """See vLLM: of an A over pooled inputs, this worker's groups."""
        return lora_a[:, self.inputs_of(self.lora_a_stacked[0])]


LAYERS = (PooledGateUp, PooledQKV, PooledRow)
