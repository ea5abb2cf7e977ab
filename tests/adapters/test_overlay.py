"""Merging as the kinds define it, against float64."""

from dataclasses import replace

import pytest
import torch

from weft_adapters.int4 import Int4Weight, pack_codes
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, MergeRefusedError
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.ia3 import Ia3Params
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_registry.kinds.prefix import TENSOR, PrefixParams
from weft_registry.kinds.qalora import QaLoraParams

MODULE, N, K, G = "layer.q", 48, 128, 32
IA3_MODULE = "layer.o_proj"
A, B = f"{PEFT_PREFIX}{MODULE}.lora_A.weight", f"{PEFT_PREFIX}{MODULE}.lora_B.weight"


def int4_weight() -> Int4Weight:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (N, K), generator=generator).to(torch.uint8)
    scale = torch.rand(N, K // G, generator=generator).half() * 0.1
    return Int4Weight(pack_codes(codes), scale, -8 * scale)


def ia3(vector: torch.Tensor) -> Adapter[Ia3Params]:
    feedforward = (IA3_MODULE,) if vector.shape[0] == 1 else ()
    tensors = {f"{PEFT_PREFIX}{IA3_MODULE}.ia3_l": vector}
    return Adapter("sha256:" + "2" * 64, KINDS["ia3"], Ia3Params((IA3_MODULE,), feedforward), tensors)


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


def dora(magnitude: torch.Tensor) -> Adapter[LowRankParams]:
    plain = low_rank("lora", K)
    tensors = {**plain.tensors, f"{PEFT_PREFIX}{MODULE}.lora_magnitude_vector": magnitude}
    return Adapter(plain.digest, KINDS["dora"], plain.params, tensors)


def test_dora_merges_into_a_dense_weight_whose_rows_have_its_magnitudes() -> None:
    weight, magnitude = int4_weight(), torch.rand(N) + 0.5
    adapter = dora(magnitude)
    merged = KINDS["dora"].overlay(MODULE, weight, adapter)
    assert isinstance(merged, torch.Tensor)
    moved = weight.dequantize().double() + 1.5 * adapter.tensors[B].double() @ adapter.tensors[A].double()
    expected = magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-6)


def test_dora_norms_are_those_of_the_bases_weights_and_an_output_of_zeros_is_refused() -> None:
    class Base:
        def __init__(self, weight: Int4Weight) -> None:
            self.weight = weight

        def int4(self, module: str) -> Int4Weight:
            return self.weight

        def bias(self, module: str) -> torch.Tensor | None:
            return torch.arange(N).half()

    weight, magnitude = int4_weight(), torch.rand(N) + 0.5
    adapter = KINDS["dora"].prepare(dora(magnitude), Base(weight))
    found = KINDS["dora"].output_scale(adapter, MODULE)
    assert found is not None
    moved = weight.dequantize().double() + 1.5 * adapter.tensors[B].double() @ adapter.tensors[A].double()
    scale = magnitude.double() / moved.norm(dim=1)
    torch.testing.assert_close(found.scale_N.double(), scale, rtol=1e-5, atol=0)
    assert found.shift_N is not None
    torch.testing.assert_close(found.shift_N.double(), (1 - scale) * torch.arange(N), rtol=1e-4, atol=1e-5)
    assert KINDS["dora"].output_scale(adapter, "layer.o") is None

    still = {name: t if "magnitude" in name else torch.zeros_like(t) for name, t in dora(magnitude).tensors.items()}
    empty = Int4Weight(torch.zeros_like(weight.codes_NH), weight.scale_NG, torch.zeros_like(weight.minimum_NG))
    with pytest.raises(InvalidInputError, match=r"layer\.q: the magnitude of output 0"):
        KINDS["dora"].prepare(replace(dora(magnitude), tensors=still), Base(empty))


@pytest.mark.parametrize("side", ["output", "input"])
def test_ia3_merges_exactly_into_scale_and_minimum_of_the_same_codes(side: str) -> None:
    weight = int4_weight()
    vector = torch.randn(N, 1) if side == "output" else torch.randn(1, K // G).repeat_interleave(G, 1)
    merged = KINDS["ia3"].overlay(IA3_MODULE, weight, ia3(vector))
    assert isinstance(merged, Int4Weight)
    assert merged.codes_NH is weight.codes_NH
    factor = vector if side == "output" else vector[:, ::G]
    assert torch.equal(merged.scale_NG, weight.scale_NG.float() * factor)
    assert torch.equal(merged.minimum_NG, weight.minimum_NG.float() * factor)
    expected = weight.dequantize().double() * vector.double()
    torch.testing.assert_close(merged.dequantize().double(), expected, rtol=1e-5, atol=1e-6)


def test_an_ia3_input_scale_that_differs_within_a_group_merges_into_a_dense_weight() -> None:
    weight, vector = int4_weight(), torch.randn(1, K)
    merged = KINDS["ia3"].overlay(IA3_MODULE, weight, ia3(vector))
    assert isinstance(merged, torch.Tensor)
    torch.testing.assert_close(merged.double(), weight.dequantize().double() * vector.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("own", [False, True])
def test_an_ia3_input_scale_of_down_proj_merges_into_the_rows_of_up_proj(own: bool) -> None:
    weight, vectors = int4_weight(), {"mlp.down_proj": torch.randn(1, N)}
    if own:
        vectors["mlp.up_proj"] = torch.randn(N, 1)
    tensors = {f"{PEFT_PREFIX}{module}.ia3_l": vector for module, vector in vectors.items()}
    params = Ia3Params(tuple(vectors), ("mlp.down_proj",))
    adapter: Adapter[Ia3Params] = Adapter("sha256:" + "3" * 64, KINDS["ia3"], params, tensors)
    factor = vectors["mlp.down_proj"][0] * (vectors["mlp.up_proj"][:, 0] if own else 1)
    merged = KINDS["ia3"].overlay("mlp.up_proj", weight, adapter)
    assert isinstance(merged, Int4Weight)
    assert torch.equal(merged.scale_NG, weight.scale_NG.float() * factor[:, None])
    assert torch.equal(merged.minimum_NG, weight.minimum_NG.float() * factor[:, None])
    bias = torch.randn(N)
    assert torch.equal(KINDS["ia3"].overlay_bias("mlp.up_proj", bias, adapter), bias * factor)
    for untouched in ("mlp.down_proj", "mlp.gate_proj"):
        assert KINDS["ia3"].overlay(untouched, int4_weight(), adapter) is None


def test_only_a_scaled_output_scales_its_bias() -> None:
    bias = torch.randn(N)
    vector = torch.randn(N, 1)
    assert torch.equal(KINDS["ia3"].overlay_bias(IA3_MODULE, bias, ia3(vector)), bias * vector[:, 0])
    assert KINDS["ia3"].overlay_bias(IA3_MODULE, bias, ia3(torch.randn(1, K))) is bias
    assert KINDS["lora"].overlay_bias(MODULE, bias, low_rank("lora", K)) is bias


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
