"""One block of the Llama family: its sites and its norms, whichever decoder computes it.

Legend: E hidden size, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import LinearSite, SublayerSite
from weft_server.torch_engine.sites import decoder_sites


@dataclass(frozen=True, eq=False)
class Layer:
    """One block."""

    attention_in: LinearSite
    attention_out: LinearSite
    mlp_in: LinearSite
    mlp_out: LinearSite
    attention_norm_E: Tensor
    mlp_norm_E: Tensor
    query_norm_D: Tensor | None
    key_norm_D: Tensor | None
    window: int | None
    attention_end: SublayerSite
    mlp_end: SublayerSite

    @property
    def sites(self) -> tuple[LinearSite, ...]:
        """The linear sites in order of use."""
        return self.attention_in, self.attention_out, self.mlp_in, self.mlp_out


def load_layer(base: StoredBase, index: int, norm: Callable[[str], Tensor]) -> Layer:
    """Block `index` of a base; `norm` reads a norm's weight by its module, as the decoder wants it."""
    prefix, config = f"model.layers.{index}", base.config
    return Layer(
        *decoder_sites(base.spec, index),
        attention_norm_E=norm(f"{prefix}.input_layernorm"),
        mlp_norm_E=norm(f"{prefix}.post_attention_layernorm"),
        query_norm_D=norm(f"{prefix}.self_attn.q_norm") if config.qk_norm else None,
        key_norm_D=norm(f"{prefix}.self_attn.k_norm") if config.qk_norm else None,
        window=config.sliding_windows[index],
        attention_end=SublayerSite(index, "attention", config.hidden_size),
        mlp_end=SublayerSite(index, "mlp", config.hidden_size),
    )
