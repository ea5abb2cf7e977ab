"""Merging inside vLLM: the torch engine's own numbers, and the base's own bits when it is over."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.bases import VLLM_SIZES, Engine, Reference, delta, difference, running
from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import MergeRefusedError
from weft_registry import artifact
from weft_registry.errors import CorruptionError, PreconditionError
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_server.vllm_engine.base.merge_file import adapter_merge_file, merge_bytes, merge_file

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., AddedBase]) -> StoredBase:
    return tiny_base("llama", **VLLM_SIZES).stored


@pytest.fixture(scope="module")
def qalora(base: StoredBase) -> RandomAdapter:
    """On some modules only: of the fused layers some parts change and others do not."""
    targets = [name for name in base.spec.linears if name.endswith(("q_proj", "v_proj", "up_proj", "down_proj"))]
    return random_adapter("qalora", base.spec, seed=3, strength=0.1, targets=targets)


@pytest.fixture(scope="module")
def lora(base: StoredBase) -> RandomAdapter:
    return random_adapter("lora", base.spec, seed=4, strength=0.1)


@pytest.fixture(scope="module")
def engine(base: StoredBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    cache = tmp_path_factory.mktemp("vllm-cache")
    with running(base, cache, enable_lora=True, max_loras=2, max_cpu_loras=2, max_lora_rank=8) as engine:
        yield engine


def zeros_of(worker: Any) -> dict[str, torch.Tensor]:
    """The zeros in use, by layer."""
    from weft_server.vllm_engine.base.worker import _layers

    return {method.prefix: method.zeros(layer).clone() for layer, method in _layers(worker)}


def test_a_merge_file_has_the_torch_engines_minima_to_the_bit(
    base: StoredBase, qalora: RandomAdapter, tmp_path: Path
) -> None:
    adapter = qalora.bound(torch.float32)
    with adapter_merge_file(adapter, base, tmp_path) as file:
        found = load_file(file.path)
        assert not file.dense
    assert not file.path.exists()
    for name, zero_NG in found.items():
        module = name.removesuffix(".zero")
        weight = base.int4(module)
        merged = adapter.kind.overlay(module, weight, adapter) or weight
        assert isinstance(merged, Int4Weight)
        assert torch.equal(zero_NG, merged.minimum_NG.float() + 8 * weight.scale_NG.float())
    assert {name.removesuffix(".zero") for name in found} >= set(qalora.params.target_modules)


def test_merged_qalora_equals_the_torch_engines_overlay_the_formula_and_the_unmerged_adapter(
    engine: Engine, base: StoredBase, qalora: RandomAdapter, tmp_path: Path
) -> None:
    from vllm.lora.request import LoRARequest

    adapter = qalora.bound(torch.float32)
    with adapter_merge_file(adapter, base, tmp_path) as file:
        (answer,) = engine.call("weft_merge", *file.arguments)
    assert answer["layers"] == 3 * base.spec.num_layers
    merged, zeros = engine.answers(), engine.call(zeros_of)[0]
    engine.call("weft_unmerge")

    for layer in range(base.spec.num_layers):
        modules = [f"model.layers.{layer}.self_attn.{name}_proj" for name in "qkv"]
        weights = [adapter.kind.overlay(name, base.int4(name), adapter) or base.int4(name) for name in modules]
        expected = torch.cat([w.minimum_NG.float() + 8 * w.scale_NG.float() for w in weights])  # type: ignore[union-attr]
        assert torch.equal(zeros[f"model.layers.{layer}.self_attn.qkv_proj"], expected)
    Reference(base, delta(qalora, base)).agrees(merged, TOLERANCE)

    repeated = repeated_as_lora(qalora, base)
    repeated.write(tmp_path / "unmerged", base.spec, "test/unmerged")
    unmerged = engine.answers(lora=LoRARequest("unmerged", 7, str(tmp_path / "unmerged")))
    assert difference(merged, unmerged) < TOLERANCE


def test_unmerging_gives_back_every_bit_after_any_number_of_merges(
    engine: Engine, base: StoredBase, qalora: RandomAdapter, lora: RandomAdapter, tmp_path: Path
) -> None:
    before, digest = engine.answers(), engine.call("weft_zeros_sha256")
    for adapter in (qalora, lora, qalora):
        with adapter_merge_file(adapter.bound(torch.float32), base, tmp_path) as file:
            engine.call("weft_merge", *file.arguments)
        assert [a.tokens for a in engine.answers()] != [a.tokens for a in before]
    assert engine.call("weft_zeros_sha256") != digest
    engine.call("weft_unmerge")
    assert engine.call("weft_zeros_sha256") == digest
    assert engine.answers() == before, "log-probabilities must be bitwise those before"


def test_merged_lora_is_dense_and_equals_the_formula(
    engine: Engine, base: StoredBase, lora: RandomAdapter, tmp_path: Path
) -> None:
    with adapter_merge_file(lora.bound(torch.float32), base, tmp_path) as file:
        assert file.dense
        (answer,) = engine.call("weft_merge", *file.arguments)
    merged = engine.answers()
    engine.call("weft_unmerge")
    assert answer["bytes"] == merge_bytes(base, torch.float32, dense=True)
    Reference(base, delta(lora, base)).agrees(merged, TOLERANCE)


def test_a_merge_over_another_base_is_refused_and_what_is_merged_stays(
    engine: Engine, base: StoredBase, qalora: RandomAdapter, tmp_path: Path
) -> None:
    with adapter_merge_file(qalora.bound(torch.float32), base, tmp_path) as file:
        path, digest, _ = file.arguments
        engine.call("weft_merge", *file.arguments)
        merged = engine.call("weft_zeros_sha256")
        with pytest.raises(PreconditionError, match="sha256:other"):
            engine.call("weft_merge", path, digest, "sha256:other")
    assert engine.call("weft_zeros_sha256") == merged
    engine.call("weft_unmerge")


def test_a_file_that_does_not_fit_leaves_the_base_alone(
    engine: Engine, base: StoredBase, qalora: RandomAdapter, tmp_path: Path
) -> None:
    digest = engine.call("weft_zeros_sha256")
    with adapter_merge_file(qalora.bound(torch.float32), base, tmp_path) as file:
        tensors = load_file(file.path)
        last = max(tensors)
        tensors[last.replace("model.layers", "model.layer")] = tensors.pop(last)
        save_file(tensors, tmp_path / "odd.safetensors")
        _, adapter, fingerprint = file.arguments
    with pytest.raises(CorruptionError):
        engine.call("weft_merge", str(tmp_path / "odd.safetensors"), adapter, fingerprint)
    assert engine.call("weft_zeros_sha256") == digest


def test_a_prefix_is_refused_with_the_kinds_own_reason(base: StoredBase, tmp_path: Path) -> None:
    random_adapter("prefix", base.spec, seed=5).write(tmp_path / "p", base.spec, "test/p")
    manifest = artifact.read(tmp_path / "p")
    with (
        pytest.raises(MergeRefusedError, match="keys and values"),
        merge_file(tmp_path / "p", manifest, base, tmp_path / "scratch"),
    ):
        pass
    assert not list((tmp_path / "scratch").iterdir())


def repeated_as_lora(adapter: RandomAdapter, base: StoredBase) -> RandomAdapter:
    """The same function as a LoRA adapter: A repeated over each group reads what pooling would have summed."""
    like = random_adapter("lora", base.spec, seed=0, targets=adapter.params.target_modules)
    tensors = dict(adapter.tensors)
    for module in adapter.params.target_modules:
        name = f"{PEFT_PREFIX}{module}.lora_A.weight"
        times = base.spec.linears[module][1] // tensors[name].shape[1]
        tensors[name] = tensors[name].repeat_interleave(times, dim=1).contiguous()
    return RandomAdapter("lora", like.params, tensors)
