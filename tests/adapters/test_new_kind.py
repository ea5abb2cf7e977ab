"""How a kind is added: its schema, its mathematics, and two entries. Everything else carries it already."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engines import Tracer
from tests.tiny_models import AddedBase
from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite
from weft_adapters.segments import Segments
from weft_registry.base import BaseSpec
from weft_registry.kinds.lora import LoraSchema
from weft_registry.kinds.schema import TensorSpec


class BiasSchema(LoraSchema):
    """A bias added to the output of every linear module. (It reuses LoRA's parameters to stay short.)"""

    name = "bias"

    def tensors(self, params: Any, base: BaseSpec | None) -> dict[str, TensorSpec]:
        assert base is not None
        return {module: TensorSpec((n_out,)) for module, (n_out, _) in base.linears.items()}


@dataclass(frozen=True)
class BiasPack:
    """The active adapters' biases at one site: `y[rows(i)] += bias_i`."""

    bias_IN: Mapping[int, Tensor]
    size_bytes: int = 0

    def apply(self, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        for index, bias_N in self.bias_IN.items():
            if index in segments.counts:
                y_TN[segments.rows(index)] += bias_N


class Bias(Kind[Any]):
    """The computing half."""

    schema = BiasSchema()

    def pack(self, adapters: Sequence[Adapter[Any] | None], site: LinearSite) -> LinearPack | None:
        own = {i: a for i, a in enumerate(adapters) if a is not None}
        return BiasPack({i: torch.cat([a.tensors[m] for m in site.modules]) for i, a in own.items()}) if own else None


@pytest.mark.parametrize("rows", [1, 4])
def test_a_kind_of_a_few_lines_is_batched_with_the_others(rows: int, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    zeros = {name: torch.zeros(spec.shape[0] or 0) for name, spec in BiasSchema().tensors(None, stored.spec).items()}
    nothing = Adapter("sha256:" + "a" * 64, Bias(), None, zeros)
    shifted = Adapter("sha256:" + "b" * 64, Bias(), None, {name: t + 0.5 for name, t in zeros.items()})
    tracer = Tracer(stored)
    prompts = [[3, 1, 4]] * (3 * rows)
    traces = tracer.run(prompts, [None, nothing, shifted] * rows, 4)
    base = tracer.run([[3, 1, 4]], [None], 4)[0]
    for index, trace in enumerate(traces):
        if index % 3 == 2:
            assert (trace.logits_SV - base.logits_SV).abs().max() > 0.1
        else:
            torch.testing.assert_close(trace.logits_SV, base.logits_SV)
