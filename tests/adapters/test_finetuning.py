"""Fine-tuned models become adapters: against transformers' own logits of the fine-tuned model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.oracles import dense_model
from tests.tiny_models import AddedBase
from weft_adapters.base.q4 import split_q8_0
from weft_adapters.extract_checkpoint import Extraction, extract_checkpoint
from weft_adapters.extraction import Truncation
from weft_adapters.finetuning import differences
from weft_registry import artifact as artifacts
from weft_registry.errors import AlreadyExistsError, InvalidInputError
from weft_registry.validation import validate

EMBEDDING = "model.embed_tokens.weight"
IDS = torch.tensor([[5, 9, 200, 31, 77, 8]])
Change = Callable[[str, Tensor], Tensor]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def fine_tune(model: Any, directory: Path, change: Change, dtype: torch.dtype = torch.float32) -> Path:
    """Saves `model` with every weight changed by `change(name, weight)`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(change(name, parameter))
    model.to(dtype).save_pretrained(directory)
    return directory


def low_rank(name: str, weight: Tensor) -> Tensor:
    """Changes the linears by a matrix of rank 3."""
    if not name.endswith("_proj.weight"):
        return weight
    return weight + 0.05 * torch.randn(weight.shape[0], 3) @ torch.randn(3, weight.shape[1])


def everything_in_layers(name: str, weight: Tensor) -> Tensor:
    """Changes linears, and the norms before sublayers, in every direction."""
    if name.endswith(("_proj.weight", "layernorm.weight")):
        return weight + 0.05 * torch.randn(weight.shape)
    return weight


def served(base: AddedBase, directory: Path) -> Tensor:
    """Stock PEFT's logits of the artifact over the dequantized base."""
    return logits(PeftModel.from_pretrained(dense_model(base.stored), str(directory)))


def extracted(base: AddedBase, checkpoint: Path, output: Path, **more: Any) -> Extraction:
    return extract_checkpoint(base.stored, checkpoint, output, more.pop("truncation", Truncation(rank=16)), **more)


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_at_full_rank_the_served_model_is_the_fine_tuned_one_changed_norms_included(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, arch: str
) -> None:
    base = tiny_base(arch)
    checkpoint = fine_tune(dense_model(base.stored), tmp_path / "tuned", everything_in_layers)
    found = extracted(base, checkpoint, tmp_path / "adapter", truncation=Truncation(rank=128))
    wanted = logits(AutoModelForCausalLM.from_pretrained(checkpoint))
    assert float((wanted - logits(dense_model(base.stored))).abs().max()) > 0.1
    torch.testing.assert_close(served(base, tmp_path / "adapter"), wanted, atol=1e-4, rtol=1e-3)
    assert found.error < 1e-6
    assert len(found.folded) == 2 * base.stored.spec.num_layers
    assert found.rest == ()


def test_a_change_of_true_rank_is_recovered_and_the_registry_accepts_it(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base = tiny_base()
    checkpoint = fine_tune(dense_model(base.stored), tmp_path / "tuned", low_rank)
    found = extracted(base, checkpoint, tmp_path / "adapter", truncation=Truncation(rank=3))
    assert set(found.ranks) == {3}
    # The difference of two float32 weights is off by their rounding.
    assert found.error < 1e-5
    torch.testing.assert_close(
        served(base, tmp_path / "adapter"),
        logits(AutoModelForCausalLM.from_pretrained(checkpoint)),
        atol=1e-4,
        rtol=1e-3,
    )
    directory = tmp_path / "adapter"
    stored = (directory / artifacts.MANIFEST).read_bytes()
    manifest = validate(stored, lambda entry: (directory / entry.path).open("rb"), base.stored.spec)
    assert {metric.name for metric in manifest.metrics} == {"extraction_error", "served_weight_error"}
    modules = manifest.provenance["modules"]
    assert modules.keys() == base.stored.spec.linears.keys()
    assert {entry["rank"] for entry in modules.values()} == {3}
    assert manifest.provenance["checkpoint"]["files"].keys() == {"model.safetensors"}


def test_against_the_original_no_rank_is_spent_on_rounding(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    base, original = tiny_base(), tiny_source()
    checkpoint = fine_tune(AutoModelForCausalLM.from_pretrained(original), tmp_path / "tuned", low_rank)
    rank3 = Truncation(rank=3)
    to_original = extracted(base, checkpoint, tmp_path / "a", original=original, truncation=rank3)
    to_stored = extracted(base, checkpoint, tmp_path / "b", truncation=rank3)
    assert to_original.error < 1e-5 < to_stored.error
    # What the first learned is the fine-tuning; the rounding to int4 is left in the served weights.
    rounding = squares = 0.0
    weights = AutoModelForCausalLM.from_pretrained(original).state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    for module in base.stored.spec.linears:
        off = weights[f"{module}.weight"] - base.stored.int4(module).dequantize()
        rounding += float(off.square().sum())
        squares += float(tuned[f"{module}.weight"].square().sum())
    assert to_original.served_error == pytest.approx((rounding / squares) ** 0.5, rel=1e-4)
    assert to_stored.served_error < to_original.served_error


def test_what_no_lora_can_carry_is_refused_or_said(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base()

    def change(name: str, weight: Tensor) -> Tensor:
        return low_rank(name, weight) * (1.5 if name in ("model.embed_tokens.weight", "model.norm.weight") else 1.0)

    checkpoint = fine_tune(dense_model(base.stored), tmp_path / "tuned", change)
    with pytest.raises(InvalidInputError, match=r"model\.embed_tokens\.weight \(by 0\.5 of its norm\).*--ignore-rest"):
        extracted(base, checkpoint, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    found = extracted(base, checkpoint, tmp_path / "adapter", ignore_rest=True)
    assert {change.name: round(change.relative, 6) for change in found.rest} == {
        "model.embed_tokens.weight": 0.5,
        "model.norm.weight": 0.5,
    }
    assert found.manifest.provenance["left_behind"].keys() == {"model.embed_tokens.weight", "model.norm.weight"}


def test_a_norm_that_the_base_has_at_zero_cannot_be_folded(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base, name = tiny_base(), "model.layers.0.input_layernorm.weight"

    def change(parameter: str, weight: Tensor) -> Tensor:
        return weight + 1.0 if parameter == name else low_rank(parameter, weight)

    checkpoint = fine_tune(dense_model(base.stored), tmp_path / "tuned", change)
    original = dense_model(base.stored)
    with torch.no_grad():
        original.get_parameter(name)[3] = 0.0
    original.save_pretrained(tmp_path / "original")
    with pytest.raises(InvalidInputError, match=name):
        extracted(base, checkpoint, tmp_path / "adapter", original=tmp_path / "original")


def test_a_checkpoint_in_a_shorter_dtype_has_not_changed_what_it_rounded(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base = tiny_base()
    checkpoint = fine_tune(dense_model(base.stored), tmp_path / "tuned", low_rank, torch.bfloat16)
    found = extracted(base, checkpoint, tmp_path / "adapter")
    assert (found.rest, found.folded) == ((), ())


def test_two_equal_models_have_nothing_to_extract(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="nothing to extract"):
        extracted(tiny_base(), tiny_source(), tmp_path / "adapter", original=tiny_source())


def test_another_architecture_is_refused_by_what_differs(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"num_layers 3 \(the base: 2\)"):
        extracted(tiny_base(), tiny_source(num_hidden_layers=3), tmp_path / "adapter")


@pytest.mark.parametrize("bits", [4, 2])
def test_an_original_that_the_base_was_not_quantized_from_is_refused_before_anything_is_decomposed(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path, bits: int
) -> None:
    base, output = tiny_base(bits=bits), tmp_path / "adapter"
    checkpoint = fine_tune(AutoModelForCausalLM.from_pretrained(tiny_source()), tmp_path / "tuned", low_rank)
    with pytest.raises(
        InvalidInputError, match=rf"--from: .*q_proj in .* quantizing it to {bits} bits .*without --from"
    ):
        extracted(base, checkpoint, output, original=tiny_source(seed=1))
    assert not output.exists()
    # Not the first module alone is looked at.
    almost = AutoModelForCausalLM.from_pretrained(tiny_source())
    with torch.no_grad():
        weight = almost.get_parameter("model.layers.1.mlp.down_proj.weight")
        weight.copy_(weight.flip(0))
    almost.save_pretrained(tmp_path / "almost")
    with pytest.raises(InvalidInputError, match=r"layers\.1\.mlp\.down_proj"):
        extracted(base, checkpoint, output, original=tmp_path / "almost")
    assert not extracted(base, checkpoint, output, original=tiny_source(), truncation=Truncation(rank=3)).folded


def test_a_model_that_has_nothing_in_common_with_the_base_is_said_to(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base()
    other = extracted(base, tiny_source(seed=1), tmp_path / "other", ignore_rest=True)
    assert other.unrelated
    assert other.base_error == pytest.approx(2**0.5, rel=0.05)
    own = extracted(base, tiny_source(), tmp_path / "own")
    assert not own.unrelated
    assert own.served_error < own.base_error < 0.15


def test_added_tokens_are_left_behind_with_the_embedding(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base()
    model = dense_model(base.stored)
    model.resize_token_embeddings(520)
    checkpoint = fine_tune(model, tmp_path / "tuned", low_rank)
    says = (
        r"the fine-tuning also changed model\.embed_tokens\.weight \(520 rows where the base has 512, .*--ignore-rest"
    )
    with pytest.raises(InvalidInputError, match=says):
        extracted(base, checkpoint, tmp_path / "adapter")
    found = extracted(base, checkpoint, tmp_path / "adapter", ignore_rest=True)
    (left,) = found.rest
    table = model.get_input_embeddings().weight.detach()
    added = table[512:].norm() / table[:512].norm()
    assert (left.name, left.rows) == (EMBEDDING, (512, 520))
    assert left.relative == pytest.approx(float(added), rel=1e-4)
    assert found.manifest.provenance["left_behind"].keys() == {EMBEDDING}
    # What it carries is what it would carry of the same model without them.
    model.resize_token_embeddings(512)
    model.save_pretrained(tmp_path / "without")
    without = extracted(base, tmp_path / "without", tmp_path / "same")
    weights = [directory / artifacts.WEIGHTS for directory in (tmp_path / "adapter", tmp_path / "same")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert without.rest == ()


def test_a_head_of_its_own_is_left_behind_where_it_is_not_the_bases(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    tied, untied = tiny_base(), tiny_base(tie_word_embeddings=False)

    def copied(source: AddedBase, name: str, *, tie: bool, head: float = 1.0) -> Path:
        model = dense_model(source.stored)
        model.config.tie_word_embeddings = tie
        table = model.get_input_embeddings().weight.detach()
        model.lm_head.weight = model.get_input_embeddings().weight if tie else torch.nn.Parameter(head * table)
        return fine_tune(model, tmp_path / name, low_rank)

    # The same head in a tensor of its own is no change.
    assert extracted(tied, copied(tied, "equal", tie=False), tmp_path / "a").rest == ()
    changed = copied(tied, "changed", tie=False, head=1.5)
    with pytest.raises(InvalidInputError, match=r"lm_head\.weight \(by 0\.5 of its norm\).*--ignore-rest"):
        extracted(tied, changed, tmp_path / "b")
    (head,) = extracted(tied, changed, tmp_path / "b", ignore_rest=True).rest
    assert head.name == "lm_head.weight"
    (head,) = extracted(untied, copied(untied, "tied", tie=True), tmp_path / "c", ignore_rest=True).rest
    assert head.name == "lm_head.weight"


def test_nothing_is_written_over(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(AlreadyExistsError):
        extracted(tiny_base(), tiny_source(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.md"]


def test_an_embedding_that_the_base_keeps_in_8_bits_has_changed_only_beyond_their_rounding() -> None:
    values = torch.randn(16, 64) * torch.logspace(-3, 1, 16)[:, None]
    raw = quantize(values.numpy(), GGMLQuantizationType.Q8_0)
    codes, scale = split_q8_0(raw.reshape(16, 2, -1))
    tensors = {
        EMBEDDING + ".codes8": torch.from_numpy(codes.copy()).view(16, 64),
        EMBEDDING + ".scale8": torch.from_numpy(scale.copy()).view(16, 2),
    }
    stored: Any = SimpleNamespace(
        spec=SimpleNamespace(linears={}),
        tensor_names=frozenset(tensors),
        tensor=tensors.__getitem__,
        dense=lambda name, dtype: torch.from_numpy(dequantize(raw, GGMLQuantizationType.Q8_0)).to(dtype),
    )

    def changes(new: Tensor) -> list[str]:
        return [change.name for change in differences(stored, lambda name: new, others=[EMBEDDING]).rest]

    assert not torch.equal(stored.dense(EMBEDDING, torch.float32), values)
    assert changes(values) == []
    moved = values.clone()
    # One entry, by two thirds of its step.
    moved[3, 7] = stored.dense(EMBEDDING, torch.float32)[3, 7] + 0.67 * float(scale[3, 0])
    assert changes(moved) == [EMBEDDING]
