"""Independent computations of what the engine computes: stock PEFT and transformers on the dequantized weights, and
QA-LoRA's formula in float64. Nothing here uses the engine or the kinds' own mathematics."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.subjects import RandomAdapter
from weft_adapters.base.dense import dequantized_state_dict
from weft_adapters.base.load import StoredBase
from weft_registry.peft_format import config_bytes, to_peft

# PEFT asks transformers by a name that transformers has renamed; neither is ours to change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def dense_model(base: StoredBase, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with the base's dequantized weights."""
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.from_pretrained(base.tokenizer_dir), dtype=dtype
    )
    missing, unexpected = model.load_state_dict(dequantized_state_dict(base, dtype), strict=False)
    left = set(missing) - ({"lm_head.weight"} if base.config.tie_word_embeddings else set())
    if left or unexpected:
        raise RuntimeError(f"weights do not fit: missing {sorted(left)}, unexpected {list(unexpected)}")
    model.tie_weights()
    return model.eval()


def peft_model(base: StoredBase, adapters: Sequence[RandomAdapter], dtype: torch.dtype = torch.float32) -> Any:
    """Stock PEFT with the adapters under the names a0, a1, ..., written to disk and loaded as anyone would."""
    model = dense_model(base, dtype)
    with TemporaryDirectory() as directory:
        for index, adapter in enumerate(adapters):
            path = Path(directory) / f"a{index}"
            path.mkdir()
            (path / "adapter_config.json").write_bytes(config_bytes(to_peft(adapter.kind, adapter.params, base.spec)))
            save_file(adapter.tensors, path / "adapter_model.safetensors")
            if index == 0:
                model = PeftModel.from_pretrained(model, path, adapter_name="a0")
            else:
                model.load_adapter(path, adapter_name=f"a{index}")
    return model.to(dtype).eval()


@torch.inference_mode()
def peft_generate(model: Any, prompts: Sequence[Sequence[int]], adapters: Sequence[int], new: int) -> list[list[int]]:
    """PEFT's greedy tokens for equally long prompts, each row with its own LoRA adapter."""
    ids = torch.tensor(prompts)
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        adapter_names=[f"a{index}" for index in adapters],
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return tokens


class Oracle:
    """Logits of any adapter, or of the base alone, on any token ids: (tokens, vocabulary) in float64."""

    def __init__(self, base: StoredBase, adapters: Sequence[RandomAdapter]) -> None:
        self._base = base
        self._adapters = {adapter.digest: adapter for adapter in adapters}
        self._dense = dense_model(base)

    @torch.inference_mode()
    def logits(self, digest: str | None, ids: Sequence[int]) -> Tensor:
        """The logits at every position of `ids`."""
        batch = torch.tensor([list(ids)])
        if digest is None:
            return _logits(self._dense(input_ids=batch))
        adapter = self._adapters[digest]
        if adapter.kind == "qalora":
            return self._qalora(adapter, batch)
        if adapter.kind in ("bottleneck", "fusion"):
            return self._networks(adapter, batch)
        model = peft_model(self._base, [adapter])
        # PEFT answers for a soft prompt's own positions too.
        return _logits(model(input_ids=batch, attention_mask=torch.ones_like(batch)))[-len(ids) :]

    def _networks(self, adapter: RandomAdapter, batch: Tensor) -> Tensor:
        """A bottleneck adapter's or a fusion's equation at the end of every sublayer it has, in float64."""
        model = dense_model(self._base, torch.float64)
        for index in adapter.params.layers:
            layer = model.model.layers[index]
            for place in adapter.params.places:
                at = f"model.layers.{index}.{place}."
                norm = layer.input_layernorm if place == "attention" else layer.post_attention_layernorm
                sublayer = layer.self_attn if place == "attention" else layer.mlp
                seen: dict[str, Tensor] = {}

                def before(_: Any, args: Any, out: Tensor, seen: dict[str, Tensor] = seen) -> None:
                    seen.update(residual=args[0], input=out)

                def after(_: Any, args: Any, out: Any, seen: dict[str, Tensor] = seen, at: str = at) -> Any:
                    y = out[0] if isinstance(out, tuple) else out
                    z = {**seen, "output": y, "sum": y + seen["residual"]}[adapter.params.reads]
                    changed = y + _change(adapter, at, z)
                    return (changed, *out[1:]) if isinstance(out, tuple) else changed

                norm.register_forward_hook(before)
                sublayer.register_forward_hook(after)
        return _logits(model(input_ids=batch))

    def _qalora(self, adapter: RandomAdapter, batch: Tensor) -> Tensor:
        """`y = W x + (alpha / r) B A pool(x)` at every target, in float64, pool the sum over each group."""
        model = dense_model(self._base, torch.float64)
        for name, module in model.named_modules():
            if name in adapter.params.target_modules:
                key = f"base_model.model.{name}.lora_"
                a, b = (adapter.tensors[f"{key}{side}.weight"].double() for side in "AB")
                scaling = float(adapter.params.alpha) / int(adapter.params.r)

                def add(_: Any, args: Any, y: Tensor, a: Tensor = a, b: Tensor = b, s: float = scaling) -> Tensor:
                    x = args[0]
                    pooled = x.reshape(*x.shape[:-1], a.shape[1], -1).sum(-1)
                    delta: Tensor = s * (pooled @ a.t() @ b.t())
                    return y + delta

                module.register_forward_hook(add)
        return _logits(model(input_ids=batch))


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits[0].double()
    return logits


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "swish": lambda x: x * torch.sigmoid(x),
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}


def _change(adapter: RandomAdapter, at: str, z: Tensor) -> Tensor:
    """What an adapter adds at the end of the sublayer whose tensors' names begin with `at`."""
    t = {name.removeprefix(at): tensor.double() for name, tensor in adapter.tensors.items() if name.startswith(at)}
    if adapter.kind == "bottleneck":
        h = _FUNCTIONS[adapter.params.non_linearity](z @ t["adapter_down.weight"].t() + t["adapter_down.bias"])
        delta: Tensor = adapter.params.scaling * (h @ t["adapter_up.weight"].t() + t["adapter_up.bias"])
        return delta
    u = torch.stack([_change(part, at, z) for part in adapter.parts], dim=-2)
    query = z @ t["query.weight"].t() + t["query.bias"]
    key = u @ t["key.weight"].t() + t["key.bias"]
    value = u @ t["value.weight"].t() if adapter.params.value else u
    p = torch.einsum("...e,...pe->...p", query, key).softmax(-1)
    return torch.einsum("...p,...pe->...e", p, value)
