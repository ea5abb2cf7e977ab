"""The Llama family's decoder over a ragged batch: every row a token, whatever sequence it belongs to.

Llama, Mistral (sliding window), Qwen2 (biases on q, k, v) and Qwen3 (norms on the heads of q and k) differ only in
what their configuration switches on. The decoder does not know which adapters there are, or that there are any: it
hands what enters and leaves each site to `ActiveAdapters`.

Legend: T rows, E hidden size, K inputs, N outputs, H key-value heads, Q query heads each, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_adapters.products import Product
from weft_server.torch_engine.attention import StepAttention
from weft_server.torch_engine.batch import StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.kv_cache import CacheShape, TorchKvStore
from weft_server.torch_engine.layers import Layer, load_layer
from weft_server.torch_engine.logits import Logits
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.rope import RotaryTable, rotate
from weft_server.torch_engine.sites import site_bias, site_weight, stack_dense, stack_weights


class TorchDecoder:
    """Implements `weft_server.torch_engine.decoders.Decoder` with torch's operators, on any device.

    The weights are immutable once built: merging is an `Overlay` handed to `forward`.
    """

    def __init__(self, base: StoredBase, kernels: KernelFactory) -> None:
        config = base.config
        self.config = config
        self._factory = kernels
        self._dtype, self._device = kernels.dtype, kernels.device
        self._embedding_VE = base.embedding(self._dtype).to(self._device)
        self._final_norm_E = self._norm(base, "model.norm")
        head = self._embedding_VE if config.tie_word_embeddings else base.tensor("lm_head.weight")
        self._head = kernels.dense(head, None)
        self._rope = RotaryTable(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
            config.context_length,
            dtype=self._dtype,
            device=self._device,
        )
        self.layers = [load_layer(base, index, partial(self._norm, base)) for index in range(config.num_layers)]
        self._store: TorchKvStore | None = None
        self._kernels: dict[LinearSite, Product] = {
            site: kernels.base(site_weight(base, site), site_bias(base, site))
            for layer in self.layers
            for site in layer.sites
        }

    @property
    def size_bytes(self) -> int:
        """See `Decoder`."""
        tensors = self._embedding_VE.nbytes + (0 if self._head_is_embedding() else self._head.size_bytes)
        return tensors + sum(kernel.size_bytes for kernel in self._kernels.values())

    @property
    def sites(self) -> Sequence[LinearSite]:
        """See `Decoder`."""
        return tuple(self._kernels)

    def kernel(self, site: LinearSite) -> Product:
        """The base's own kernel at a site."""
        return self._kernels[site]

    def new_cache(self, limit_bytes: int) -> TorchKvStore:
        """See `Decoder`."""
        c = self.config
        shape = CacheShape(c.num_layers, c.num_kv_heads, c.head_dim, self._dtype, self._device)
        self._store = TorchKvStore(shape, limit_bytes)
        return self._store

    def adopt(self, adapter: Adapter[Any]) -> Adapter[Any]:
        """See `Decoder`: as it is."""
        return adapter

    def merged(
        self,
        site: LinearSite,
        before: Sequence[Int4Weight],
        after: Sequence[Int4Weight | Tensor],
        bias_N: Tensor | None,
    ) -> Product:
        """See `Decoder`."""
        quantized = [weight for weight in after if isinstance(weight, Int4Weight)]
        if len(quantized) == len(after):
            return self._factory.overlay(self._kernels[site], stack_weights(before), stack_weights(quantized), bias_N)
        return self._factory.dense(stack_dense(after), bias_N)

    def forward(self, step: StepBatch, adapters: ActiveAdapters, overlay: Overlay | None) -> Logits:
        """See `Decoder`."""
        assert self._store is not None, "forward before new_cache"
        x_TE = self._embedding_VE[step.token_T]
        for virtual in step.embedded:
            x_TE[virtual.rows] = virtual.embedding_TE
        cos, sin = self._rope.at(step.position_T)
        attention = StepAttention(step, self._store, self._dtype)
        for index, layer in enumerate(self.layers):
            h_TE = self._rms_norm(x_TE, layer.attention_norm_E)
            qkv_TN = self._linear(layer.attention_in, h_TE, step, adapters, overlay)
            out_TN = self._attention(index, layer, qkv_TN, cos, sin, attention)
            y_TE = self._linear(layer.attention_out, out_TN, step, adapters, overlay)
            adapters.apply_sublayer(layer.attention_end, h_TE, x_TE, y_TE, step.segments)
            x_TE = x_TE + y_TE
            h_TE = self._rms_norm(x_TE, layer.mlp_norm_E)
            gate_TN, up_TN = self._linear(layer.mlp_in, h_TE, step, adapters, overlay).chunk(2, dim=-1)
            y_TE = self._linear(layer.mlp_out, F.silu(gate_TN) * up_TN, step, adapters, overlay)
            adapters.apply_sublayer(layer.mlp_end, h_TE, x_TE, y_TE, step.segments)
            x_TE = x_TE + y_TE
        last_SE = x_TE[step.last_S]
        normed_SE = self._rms_norm(last_SE, self._final_norm_E)
        # What is too large to square is normed to zeros, from which any token would be as likely as any other.
        overflows_S1 = ~last_SE.float().square().mean(-1, keepdim=True).isfinite()
        return Logits.of(self._head(normed_SE.masked_fill(overflows_S1, float("nan"))).float())

    def _linear(
        self, site: LinearSite, x_TK: Tensor, step: StepBatch, adapters: ActiveAdapters, overlay: Overlay | None
    ) -> Tensor:
        adapters.apply_input(site, x_TK, step.segments)
        kernel, split = self._kernels[site], step.num_merged
        merged = cast("Product | None", overlay.kernels.get(site)) if overlay and split else None
        # Each row through its own weight: the merged one or the base's, which is never approximated by the other.
        if merged is None:
            y_TN = kernel(x_TK)
        elif split == x_TK.shape[0]:
            y_TN = merged(x_TK)
        else:
            y_TN = torch.cat((merged(x_TK[:split]), kernel(x_TK[split:])))
        adapters.apply(site, x_TK, y_TN, step.segments)
        return y_TN

    def _attention(
        self, index: int, layer: Layer, qkv_TN: Tensor, cos: Tensor, sin: Tensor, attention: StepAttention
    ) -> Tensor:
        c = self.config
        heads, kv_heads, dim = c.num_heads, c.num_kv_heads, c.head_dim
        qkv_THD = qkv_TN.view(-1, heads + 2 * kv_heads, dim)
        if layer.query_norm_D is not None and layer.key_norm_D is not None:
            query = self._rms_norm(qkv_THD[:, :heads], layer.query_norm_D)
            key = self._rms_norm(qkv_THD[:, heads : heads + kv_heads], layer.key_norm_D)
            qk_THD = torch.cat((query, key), dim=1)
        else:
            qk_THD = qkv_THD[:, : heads + kv_heads]
        qk_THD = rotate(qk_THD, cos, sin)
        q_THQD = qk_THD[:, :heads].view(-1, kv_heads, heads // kv_heads, dim)
        k_THD, v_THD = qk_THD[:, heads:], qkv_THD[:, heads + kv_heads :]
        out_THQD = attention.layer(index, layer.window, q_THQD, k_THD, v_THD)
        return out_THQD.view(-1, heads * dim)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        # In float32 and rounded before the weight, as the reference implementations do.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return wide.to(x.dtype) * weight

    def _norm(self, base: StoredBase, name: str) -> Tensor:
        return base.tensor(f"{name}.weight").to(self._device, self._dtype)

    def _head_is_embedding(self) -> bool:
        weight = getattr(self._head, "weight_NK", None)
        return weight is not None and weight.data_ptr() == self._embedding_VE.data_ptr()
