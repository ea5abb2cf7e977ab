"""The Llama family's decoder over a ragged batch: every row a token, whatever sequence it belongs to.

Llama, Mistral (sliding window), Qwen2 (biases on q, k, v) and Qwen3 (norms on the heads of q and k) differ only in
what their configuration switches on. The decoder does not know which adapters there are, or that there are any: it
hands each linear site's input and output to `ActiveAdapters`.

Legend: T rows, E hidden size, K inputs, N outputs, H key-value heads, Q query heads each, D head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import LinearSite
from weft_adapters.products import Product
from weft_server.torch_engine.attention import decode_attention, decode_mask, prefill_attention, prefill_mask
from weft_server.torch_engine.batch import MergedRows, StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.kernels import KernelFactory
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.rope import RotaryTable, rotate
from weft_server.torch_engine.sites import site_bias, site_weight


@dataclass(frozen=True, eq=False)
class Layer:
    """One block: its sites, their kernels, and its norms."""

    attention_in: LinearSite
    attention_out: LinearSite
    mlp_in: LinearSite
    mlp_out: LinearSite
    attention_norm_E: Tensor
    mlp_norm_E: Tensor
    query_norm_D: Tensor | None
    key_norm_D: Tensor | None
    window: int | None

    @property
    def sites(self) -> tuple[LinearSite, ...]:
        """The linear sites in order of use."""
        return self.attention_in, self.attention_out, self.mlp_in, self.mlp_out


class Decoder:
    """The base model in memory. Immutable once built: merging is an `Overlay` handed to `forward`."""

    def __init__(self, base: StoredBase, kernels: KernelFactory) -> None:
        config = base.config
        self.config = config
        self.factory = kernels
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
        self.layers = [self._layer(base, index) for index in range(config.num_layers)]
        self._kernels: dict[LinearSite, Product] = {
            site: kernels.base(site_weight(base, site), site_bias(base, site))
            for layer in self.layers
            for site in layer.sites
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        tensors = self._embedding_VE.nbytes + (0 if self._head_is_embedding() else self._head.size_bytes)
        return tensors + sum(kernel.size_bytes for kernel in self._kernels.values())

    def kernel(self, site: LinearSite) -> Product:
        """The base's own kernel at a site."""
        return self._kernels[site]

    def forward(self, step: StepBatch, adapters: ActiveAdapters, overlay: Overlay | None) -> Tensor:
        """Runs one step, writing its keys and values to the cache. Returns float32 logits (S, V), one row a sequence.

        Row by row the meaning is a transformer with that row's own adapter; `overlay` must be the merged adapter's
        when `step.merged` is given.
        """
        x_TE = self._embedding_VE[step.token_T]
        cos, sin = self._rope.at(step.position_T)
        masks = _Masks(step, self._dtype)
        for index, layer in enumerate(self.layers):
            h_TE = self._rms_norm(x_TE, layer.attention_norm_E)
            qkv_TN = self._linear(layer.attention_in, h_TE, step, adapters, overlay)
            out_TN = self._attention(index, layer, qkv_TN, cos, sin, step, masks)
            x_TE = x_TE + self._linear(layer.attention_out, out_TN, step, adapters, overlay)
            h_TE = self._rms_norm(x_TE, layer.mlp_norm_E)
            gate_TN, up_TN = self._linear(layer.mlp_in, h_TE, step, adapters, overlay).chunk(2, dim=-1)
            x_TE = x_TE + self._linear(layer.mlp_out, F.silu(gate_TN) * up_TN, step, adapters, overlay)
        last_SE = self._rms_norm(x_TE[step.last_S], self._final_norm_E)
        return self._head(last_SE).float()

    def _linear(
        self, site: LinearSite, x_TK: Tensor, step: StepBatch, adapters: ActiveAdapters, overlay: Overlay | None
    ) -> Tensor:
        kernel = self._kernels[site]
        merged = overlay.kernels.get(site) if overlay and step.merged else None
        if merged is None or step.merged is None:
            y_TN = kernel(x_TK)
        else:
            y_TN = _split_product(kernel, merged, step.merged, x_TK)
        adapters.apply(site, x_TK, y_TN, step.segments)
        return y_TN

    def _attention(
        self, index: int, layer: Layer, qkv_TN: Tensor, cos: Tensor, sin: Tensor, step: StepBatch, masks: _Masks
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
        out_THQD = torch.empty_like(q_THQD, memory_format=torch.contiguous_format)
        for group in step.decodes:
            key, value, rows = group.arena.key_LSHCD[index], group.arena.value_LSHCD[index], group.rows
            count = rows.stop - rows.start
            slot_B = masks.slots(count)
            key[slot_B, :, group.position_B] = k_THD[rows]
            value[slot_B, :, group.position_B] = v_THD[rows]
            out_THQD[rows] = decode_attention(
                q_THQD[rows],
                key[:count, :, : group.length],
                value[:count, :, : group.length],
                masks.decode(group.arena.row_length, layer.window),
            )
        for prefill in step.prefills:
            key, value = prefill.arena.key_LSHCD[index], prefill.arena.value_LSHCD[index]
            rows, row, start = prefill.rows, prefill.arena_row, prefill.start
            stop = start + rows.stop - rows.start
            key[row, :, start:stop] = k_THD[rows].transpose(0, 1)
            value[row, :, start:stop] = v_THD[rows].transpose(0, 1)
            out_THQD[rows] = prefill_attention(
                q_THQD[rows], key[row, :, :stop], value[row, :, :stop], masks.prefill(start, stop, layer.window)
            )
        return out_THQD.view(-1, heads * dim)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        # In float32 and rounded before the weight, as the reference implementations do.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return wide.to(x.dtype) * weight

    def _norm(self, base: StoredBase, name: str) -> Tensor:
        return base.tensor(f"{name}.weight").to(self._device, self._dtype)

    def _layer(self, base: StoredBase, index: int) -> Layer:
        prefix = f"model.layers.{index}"

        def site(*names: str) -> LinearSite:
            modules = tuple(f"{prefix}.{name}" for name in names)
            shapes = [base.spec.linears[module] for module in modules]
            return LinearSite(modules, tuple(n_out for n_out, _ in shapes), shapes[0][1])

        heads = (f"{prefix}.self_attn.q_norm", f"{prefix}.self_attn.k_norm") if self.config.qk_norm else None
        return Layer(
            attention_in=site("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            attention_out=site("self_attn.o_proj"),
            mlp_in=site("mlp.gate_proj", "mlp.up_proj"),
            mlp_out=site("mlp.down_proj"),
            attention_norm_E=self._norm(base, f"{prefix}.input_layernorm"),
            mlp_norm_E=self._norm(base, f"{prefix}.post_attention_layernorm"),
            query_norm_D=self._norm(base, heads[0]) if heads else None,
            key_norm_D=self._norm(base, heads[1]) if heads else None,
            window=self.config.sliding_windows[index],
        )

    def _head_is_embedding(self) -> bool:
        weight = getattr(self._head, "weight_NK", None)
        return weight is not None and weight.data_ptr() == self._embedding_VE.data_ptr()


class _Masks:
    """The step's masks, each made once and shared by every layer that wants it."""

    def __init__(self, step: StepBatch, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._device = step.token_T.device
        self._groups = {group.arena.row_length: group for group in step.decodes}
        self._decode: dict[tuple[int, int | None], Tensor] = {}
        self._prefill: dict[tuple[int, int, int | None], Tensor | None] = {}
        self._slots: dict[int, Tensor] = {}

    def slots(self, count: int) -> Tensor:
        if count not in self._slots:
            self._slots[count] = torch.arange(count, device=self._device)
        return self._slots[count]

    def decode(self, row_length: int, window: int | None) -> Tensor:
        key = (row_length, window)
        if key not in self._decode:
            group = self._groups[row_length]
            self._decode[key] = decode_mask(group.position_B, group.length, window, self._dtype)
        return self._decode[key]

    def prefill(self, start: int, stop: int, window: int | None) -> Tensor | None:
        key = (start, stop, window)
        if key not in self._prefill:
            self._prefill[key] = prefill_mask(start, stop - start, window, self._dtype, self._device)
        return self._prefill[key]


def _split_product(base: Product, merged: Product, rows: MergedRows, x_TK: Tensor) -> Tensor:
    """Each row through its own weight: the merged one or the base's, which is never approximated by the other."""
    if rows.others is None or rows.merged is None:
        return merged(x_TK)
    y_others = base(x_TK[rows.others])
    y_TN = y_others.new_empty(x_TK.shape[0], y_others.shape[1])
    y_TN[rows.others] = y_others
    y_TN[rows.merged] = merged(x_TK[rows.merged])
    return y_TN
