"""Merging as the kinds define it, against float64."""

import pytest
import torch

from weft_adapters.int4 import Int4Weight, pack_codes
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, MergeRefusedError
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_registry.kinds.prefix import TENSOR, PrefixParams
from weft_registry.kinds.qalora import QaLoraParams

MODULE, N, K, G = "layer.q", 48, 128, 32
A, B = f"{PEFT_PREFIX}{MODULE}.lora_A.weight", f"{PEFT_PREFIX}{MODULE}.lora_B.weight"


def int4_weight() -> Int4Weight:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (N, K), generator=generator).to(torch.uint8)
    scale = torch.rand(N, K // G, generator=generator).half() * 0.1
    return Int4Weight(pack_codes(codes), scale, -8 * scale)


def low_rank(kind: str, inputs: int) -> Adapter[LowRankParams]:
    shared = {"r": 4, "alpha": 6.0, "use_rslora": False, "target_modules": (MODULE,), "rank_pattern": {}}
    params: LowRankParams = (
        QaLoraParams(**shared, alpha_pattern={}, group_size=G)
        if kind == "qalora"
        else LowRankParams(**shared, alpha_pattern={})
    )
    generator = torch.Generator().manual_seed(5)
    tensors = {A: torch.randn(4, inputs, generator=generator), B: torch.randn(N, 4, generator=generator)}
    return Adapter("sha256:" + "0" * 64, KINDS[kind], params, tensors)


def test_qalora_merges_exactly_into_the_minimum_of_the_same_codes() -> None:
    weight, adapter = int4_weight(), low_rank("qalora", K // G)
    merged = KINDS["qalora"].overlay(MODULE, weight, adapter)
    assert isinstance(merged, Int4Weight)
    assert merged.codes_NH is weight.codes_NH
    assert merged.scale_NG is weight.scale_NG
    x = torch.randn(7, K, dtype=torch.float64)
    pooled = x.view(7, K // G, G).sum(-1)
    delta = pooled @ adapter.tensors[A].double().t() @ adapter.tensors[B].double().t() * 1.5
    expected = x @ weight.dequantize().double().t() + delta
    torch.testing.assert_close(x @ merged.dequantize().double().t(), expected, rtol=1e-4, atol=1e-4)


def test_lora_merges_into_a_dense_weight() -> None:
    weight, adapter = int4_weight(), low_rank("lora", K)
    merged = KINDS["lora"].overlay(MODULE, weight, adapter)
    assert isinstance(merged, torch.Tensor)
    expected = weight.dequantize().double() + 1.5 * adapter.tensors[B].double() @ adapter.tensors[A].double()
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "inputs"), [("lora", K), ("qalora", K // G)])
def test_a_module_that_the_adapter_does_not_touch_has_no_overlay(kind: str, inputs: int) -> None:
    assert KINDS[kind].overlay("layer.o", int4_weight(), low_rank(kind, inputs)) is None


def test_a_prefix_is_refused_with_the_reason() -> None:
    params = PrefixParams(num_virtual_tokens=2, num_layers=1, num_kv_heads=1, head_dim=4)
    adapter = Adapter("sha256:" + "1" * 64, KINDS["prefix"], params, {TENSOR: torch.zeros(2, 8)})
    with pytest.raises(MergeRefusedError, match="changes no weight"):
        KINDS["prefix"].overlay(MODULE, int4_weight(), adapter)


def test_prefix_rows_are_key_then_value_layer_by_layer() -> None:
    params = PrefixParams(num_virtual_tokens=3, num_layers=2, num_kv_heads=2, head_dim=4)
    stored = torch.arange(3 * 2 * 2 * 2 * 4, dtype=torch.float32).view(3, -1)
    adapter = Adapter("sha256:" + "1" * 64, KINDS["prefix"], params, {TENSOR: stored})
    found = KINDS["prefix"].key_values(adapter)
    assert found is not None
    assert found.length == 3
    for layer in range(2):
        for head in range(2):
            for p in range(3):
                key = stored[p, (layer * 2 * 2 + head) * 4 :][:4]
                value = stored[p, ((layer * 2 + 1) * 2 + head) * 4 :][:4]
                assert torch.equal(found.key_LHPD[layer, head, p], key)
                assert torch.equal(found.value_LHPD[layer, head, p], value)
