"""What the linears of a base see when it reads text: the sums that GPTQ wants, layer by layer.

Each layer is quantized before its output goes on to the next, so that later layers are calibrated on what they will
really get (arXiv:2210.17323, section 4).

Shapes: B sequences, T positions, D hidden size, K a linear's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Linear, Int4Weight
from weft_trainer.modeling.base import build, dense_linear, layer_of, replace_module
from weft_trainer.progress import Reporter

Quantize = Callable[[str, Tensor, Tensor], Int4Weight]
"""(module, dense weight (N, K), sum of x x^T over its inputs (K, K)) to its quantized weight."""


@torch.no_grad()
def calibrate(
    stored: StoredBase,
    ids: Sequence[Sequence[int]],
    dense: Callable[[str], Tensor | None],
    quantize: Quantize,
    report: Reporter,
    biases: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[str, Int4Weight]]:
    """Every linear module of the base, in order, quantized from its `dense` weight and what it sees of `ids`; as it is
    where `dense` answers None.

    The layers above the one at work have their dense weights too, so that what is calibrated is the dense model.
    `biases` replace those of linears by full name, as a merge does. Computes in float32.
    """
    base = build(stored, torch.float32, dense=False, biases=biases)

    def bias_of(module: str) -> Tensor | None:
        return (biases or {}).get(module, stored.bias(module))

    model: Any = base.model.model
    states = [model.embed_tokens(torch.tensor([list(row)])) for row in ids]
    by_layer: dict[int | None, list[str]] = {}
    for module in stored.spec.linears:
        by_layer.setdefault(layer_of(module), []).append(module)
    with report.task("calibrating layers", len(model.layers)) as task:
        for index, layer in enumerate(model.layers):
            modules = by_layer[index]
            found = {module: dense(module) for module in modules}
            weights = {module: weight_NK for module, weight_NK in found.items() if weight_NK is not None}
            for module, weight_NK in weights.items():
                replace_module(base.model, module, dense_linear(weight_NK, bias_of(module), torch.float32))
            seen = _inputs(base.model, list(weights), partial(_run_all, model, layer, states)) if weights else {}
            for module in modules:
                if module in weights:
                    quantized = quantize(module, weights[module], seen[module])
                    replace_module(base.model, module, Int4Linear(quantized, bias_of(module)))
                    yield module, quantized
                else:
                    yield module, stored.int4(module)
            states = _run_all(model, layer, states)
            task.advance(1)


def _inputs(model: nn.Module, modules: Sequence[str], run: Callable[[], object]) -> Mapping[str, Tensor]:
    """The sum of x x^T over every input that each module gets while `run` runs, float64 (K, K)."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x_TK = arguments[0].flatten(0, -2)
            # One product a call in float32, added up in float64.
            product_KK = (x_TK.t() @ x_TK).double()
            sums[name] = product_KK if name not in sums else sums[name] + product_KK

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _run_all(model: Any, layer: Any, states: Sequence[Tensor]) -> list[Tensor]:
    return [_run(model, layer, state_BTD) for state_BTD in states]


def _run(model: Any, layer: Any, state_BTD: Tensor) -> Tensor:
    position_T = torch.arange(state_BTD.shape[1])[None]
    out = layer(
        state_BTD,
        attention_mask=None,
        position_ids=position_T,
        position_embeddings=model.rotary_emb(state_BTD, position_T),
        use_cache=False,
    )
    result: Tensor = out[0] if isinstance(out, tuple) else out
    return result
