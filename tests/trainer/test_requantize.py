"""A base again with fewer bits: what is stored, what it computes, and that calibration follows the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.base.load import StoredBase
from weft_adapters.base.quantize import quantize
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter
from weft_registry.errors import AlreadyExistsError, InvalidInputError, UnsupportedError
from weft_trainer.methods.worn import wear
from weft_trainer.modeling.base import build
from weft_trainer.modeling.calibration import calibrate
from weft_trainer.progress import QuietReporter
from weft_trainer.requantize import requantize, sequences

REPORT = QuietReporter()


def open_named(base: AddedBase, name: str) -> StoredBase:
    return StoredBase.open(base.home.bases / name)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [{"prompt": f"Oil prices rose by {n} percent", "completion": f" on day {n * 7}."} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_base_of_fewer_bits_is_the_first_one_rounded_again(bits: int, tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base("qwen2")
    name = f"rounded-{bits}"
    spec = requantize(base.name, name, REPORT, bits=bits, group_size=64, home=base.home)
    again = open_named(base, name)
    again.verify()
    assert (spec.fingerprint.quant.bits, spec.fingerprint.quant.group_size) == (bits, 64)
    assert spec.fingerprint.weights_sha256 != base.stored.spec.fingerprint.weights_sha256
    for module in spec.linears:
        expected = quantize(base.stored.int4(module).dequantize(), 64, module, bits)
        assert torch.equal(again.int4(module).codes_NH, expected.codes_NH)
        assert int(again.int4(module).codes().max()) <= 2**bits - 1
        assert torch.equal(again.int4(module).minimum_NG, expected.minimum_NG)
    assert torch.equal(again.embedding(torch.float32), base.stored.embedding(torch.float32))
    assert torch.equal(again.tensor("model.norm.weight"), base.stored.tensor("model.norm.weight"))


def test_calibration_sees_what_each_linear_gets_behind_quantized_layers(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, stored.config.vocab_size, (3, 20), generator=generator)
    seen: dict[str, torch.Tensor] = {}

    def choose(module: str, weight_NK: torch.Tensor, hessian_KK: torch.Tensor) -> object:
        seen[module] = hessian_KK
        return quantize(weight_NK, 32, module, 2)

    found = dict(calibrate(stored, ids.tolist(), lambda m: stored.int4(m).dequantize(), choose, REPORT))  # type: ignore[arg-type]
    assert list(found) == list(stored.spec.linears)
    # The reference: one whole pass of the model whose layers below are quantized, by transformers.
    layer = stored.config.num_layers - 1
    below = {m: w for m, w in found.items() if f".layers.{layer}." not in m}
    reference = build(stored, torch.float32, overlays=below)
    inputs: dict[str, torch.Tensor] = {}
    for module in stored.spec.linears:
        if f".layers.{layer}." in module:
            reference.model.get_submodule(module).register_forward_pre_hook(
                lambda _, args, module=module: inputs.__setitem__(module, args[0].flatten(0, -2).double())
            )
    with torch.no_grad():
        reference.model(input_ids=ids)
    for module, x_TK in inputs.items():
        torch.testing.assert_close(seen[module], x_TK.t() @ x_TK, rtol=1e-3, atol=1e-3)


def test_a_calibrated_base_answers_nearer_to_the_first_than_a_rounded_one(
    tiny_base: Callable[..., AddedBase], texts: Path
) -> None:
    base = tiny_base()
    for name, calibration in (("nearest-3", None), ("calibrated-3", texts)):
        requantize(base.name, name, REPORT, bits=3, group_size=32, calibration=calibration, length=64, home=base.home)
    tokens = torch.tensor([row for row in sequences(base.stored, texts, 64, 32, REPORT) if len(row) == 32])

    def logits(stored: StoredBase) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(build(stored, torch.float32).model(input_ids=tokens).logits, -1)

    first = logits(base.stored)
    distance = {
        name: float((logits(open_named(base, name)) - first).abs().mean()) for name in ("nearest-3", "calibrated-3")
    }
    assert distance["calibrated-3"] < distance["nearest-3"]


def test_an_adapter_is_merged_before_its_weights_are_rounded(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, texts: Path
) -> None:
    base = tiny_base()
    whole = random_adapter("lora", base.stored.spec, 3, strength=0.3)
    adapted = tuple(module for module in whole.params.target_modules if ".layers.1." in module)
    kept = {name: tensor for name, tensor in whole.tensors.items() if ".layers.1." in name}
    lora = replace(whole, params=replace(whole.params, target_modules=adapted), tensors=kept)
    lora.write(tmp_path / "lora", base.stored.spec, "lora")
    requantize(base.name, "merged-4", REPORT, bits=4, group_size=32, merge=tmp_path / "lora", home=base.home)
    again, bound = open_named(base, "merged-4"), lora.bound(torch.float32)
    assert isinstance(bound, Adapter)
    module = "model.layers.1.mlp.down_proj"
    merged = bound.kind.overlay(module, base.stored.int4(module), bound)
    assert isinstance(merged, torch.Tensor)
    assert torch.equal(again.int4(module).codes_NH, quantize(merged, 32, module).codes_NH)
    # What it leaves alone keeps its very codes, calibrated or not.
    requantize(
        base.name,
        "calibrated-merged",
        REPORT,
        bits=4,
        group_size=32,
        merge=tmp_path / "lora",
        calibration=texts,
        home=base.home,
    )
    for name in ("merged-4", "calibrated-merged"):
        for untouched in (m for m in base.stored.spec.linears if ".layers.0." in m):
            for found, expected in zip(
                vars(open_named(base, name).int4(untouched)).values(),
                vars(base.stored.int4(untouched)).values(),
                strict=True,
            ):
                assert torch.equal(found, expected)


def test_biases_that_a_merge_scales_are_stored_scaled_and_calibrated_with(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, texts: Path
) -> None:
    base = tiny_base("qwen2")
    ia3 = random_adapter("ia3", base.stored.spec, 3, strength=0.5)
    ia3.write(tmp_path / "ia3", base.stored.spec, "ia3")
    for name, calibration in (("scaled", None), ("scaled-gptq", texts)):
        requantize(
            base.name,
            name,
            REPORT,
            bits=4,
            group_size=32,
            merge=tmp_path / "ia3",
            calibration=calibration,
            length=64,
            home=base.home,
        )
    biased = [module for module in base.stored.spec.linears if base.stored.bias(module) is not None]
    assert {module.rpartition(".")[2] for module in biased} == {"q_proj", "k_proj", "v_proj"}
    for name in ("scaled", "scaled-gptq"):
        again = open_named(base, name)
        again.verify()
        for module in biased:
            bias_N, found_N = base.stored.bias(module), again.bias(module)
            assert bias_N is not None
            assert found_N is not None
            vector_N = ia3.tensors[f"base_model.model.{module}.ia3_l"].flatten().double()
            assert torch.equal(found_N, (bias_N.double() * vector_N).float())
    # The whole model, against the merged one: as near as four bits are, and far from one whose biases stayed.
    tokens = torch.tensor([row for row in sequences(base.stored, texts, 64, 32, REPORT) if len(row) == 32])
    merged = wear(base.stored, tmp_path / "ia3", torch.float32, base.home, merged=True)

    def states(stored: StoredBase, biases: Callable[[str], torch.Tensor | None] | None = None) -> torch.Tensor:
        replaced = None if biases is None else {m: b for m in biased if (b := biases(m)) is not None}
        return build(stored, torch.float32, biases=replaced).hidden({"input_ids": tokens})

    with torch.no_grad():
        wanted = merged.hidden({"input_ids": tokens})
        for name in ("scaled", "scaled-gptq"):
            again = open_named(base, name)
            error = (states(again) - wanted).norm()
            assert error < 0.1 * wanted.norm()
            assert (states(again, base.stored.bias) - wanted).norm() > 1.3 * error


def test_calibration_runs_with_the_biases_that_it_is_given(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base("qwen2").stored
    ids = [[5, 9, 200, 31, 7, 3], [8, 8, 1]]
    biases = {m: 3 * b.float() for m in stored.spec.linears if (b := stored.bias(m)) is not None}
    sums: list[dict[str, torch.Tensor]] = []
    for given in (None, biases):
        seen: dict[str, torch.Tensor] = {}

        def choose(module: str, weight_NK: torch.Tensor, hessian_KK: torch.Tensor, seen: Any = seen) -> Int4Weight:
            seen[module] = hessian_KK
            return stored.int4(module)

        dict(calibrate(stored, ids, lambda m: stored.int4(m).dequantize(), choose, REPORT, given))
        sums.append(seen)
    reference = build(stored, torch.float32, biases=biases)
    outputs: list[torch.Tensor] = []
    module = "model.layers.0.self_attn.o_proj"
    reference.model.get_submodule(module).register_forward_pre_hook(
        lambda _, args: outputs.append(args[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        for row in ids:
            reference.model(input_ids=torch.tensor([row]))
    expected = sum((x_TK.t() @ x_TK for x_TK in outputs), torch.zeros_like(sums[1][module]))
    torch.testing.assert_close(sums[1][module], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sums[0][module], expected, rtol=0.1)


def test_what_cannot_be_is_refused_and_stores_nothing(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base()
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    before = sorted(path.name for path in base.home.bases.iterdir())
    with pytest.raises(UnsupportedError, match="--bits 5"):
        requantize(base.name, "new", REPORT, bits=5, group_size=32, home=base.home)
    with pytest.raises(InvalidInputError, match="--group-size 48"):
        requantize(base.name, "new", REPORT, bits=4, group_size=48, home=base.home)
    with pytest.raises(AlreadyExistsError, match="choose another name"):
        requantize(base.name, base.name, REPORT, bits=4, group_size=32, home=base.home)
    with pytest.raises(InvalidInputError, match="empty"):
        requantize(base.name, "new", REPORT, bits=3, group_size=32, calibration=empty, home=base.home)
    assert sorted(path.name for path in base.home.bases.iterdir()) == before
