"""The base inside vLLM is the stored base, to the bit in its numbers and to float32 rounding in its logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.bases import VLLM_SIZES, Reference, delta, running
from weft_adapters.base.store import MODEL_FILE
from weft_adapters.int4 import unpack_codes
from weft_registry.errors import InvalidInputError
from weft_server.vllm_engine.base.directory import vllm_directory

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 2e-4
"""Of a log-probability in float32, over two layers of another order of summation."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm-cache")


def test_the_directory_holds_the_very_numbers_of_the_base(tiny_base: Callable[..., AddedBase], cache: Path) -> None:
    base = tiny_base("mistral").stored
    tensors = load_file(vllm_directory(base, cache) / MODEL_FILE)
    for module in base.spec.linears:
        weight = base.int4(module)
        packed = tensors[f"{module}.weight_packed"]
        codes = torch.stack([(packed >> shift) & 0xF for shift in range(0, 32, 4)], dim=-1).view(weight.shape)
        assert torch.equal(codes, unpack_codes(weight.codes_NH).int())
        assert torch.equal(tensors[f"{module}.weight_scale"], weight.scale_NG)
        assert torch.equal(tensors[f"{module}.weight_min"], weight.minimum_NG)
    assert torch.equal(tensors["lm_head.weight"].float(), base.head(torch.float32))


def test_the_directory_is_written_once_and_a_leftover_removed(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base = tiny_base("llama").stored
    leftover = tmp_path / "vllm" / ".writing-killed"
    leftover.mkdir(parents=True)
    first = vllm_directory(base, tmp_path)
    written = (first / MODEL_FILE).stat().st_mtime_ns
    assert vllm_directory(base, tmp_path) == first
    assert (first / MODEL_FILE).stat().st_mtime_ns == written
    assert not leftover.exists()


def test_a_write_that_fails_leaves_nothing(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("weft_server.vllm_engine.base.directory.write_model_directory", full)
    with pytest.raises(OSError, match="no space"):
        vllm_directory(tiny_base("llama").stored, tmp_path)
    assert [path.name for path in (tmp_path / "vllm").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arch", "group_size", "options"),
    [
        ("llama", 32, VLLM_SIZES),
        ("llama", 64, {**VLLM_SIZES, "attention_bias": True, "mlp_bias": True}),
        ("qwen3", 128, VLLM_SIZES),
    ],
)
def test_logits_and_lora_on_top_equal_transformers(
    arch: str,
    group_size: int,
    options: dict[str, Any],
    tiny_base: Callable[..., AddedBase],
    cache: Path,
    tmp_path: Path,
) -> None:
    from vllm.lora.request import LoRARequest

    base = tiny_base(arch, group_size=group_size, **options).stored
    adapter = random_adapter("lora", base.spec, seed=1, strength=0.1)
    adapter.write(tmp_path / "a", base.spec, "test/a")
    lora = LoRARequest("a", 1, str(tmp_path / "a"))
    with running(base, cache, enable_lora=True, max_loras=2, max_cpu_loras=2, max_lora_rank=8) as engine:
        alone, adapted = engine.answers(), engine.answers(lora=lora)
        assert engine.call("weft_kernels") == [{"pooled": 4 * base.spec.num_layers}]
    Reference(base).agrees(alone, TOLERANCE)
    Reference(base, delta(adapter, base)).agrees(adapted, TOLERANCE)
    assert [a.tokens for a in alone] != [a.tokens for a in adapted], "an adapter too weak to see proves nothing"


def test_both_kernels_are_as_near_to_the_base_as_bfloat16_allows(
    tiny_base: Callable[..., AddedBase], cache: Path
) -> None:
    base = tiny_base("llama", **VLLM_SIZES).stored
    answers = {}
    for kernel in ("float-zero", "pooled"):
        with running(base, cache, dtype="bfloat16", additional_config={"weft_int4_kernel": kernel}) as engine:
            assert engine.call("weft_kernels") == [{kernel: 4 * base.spec.num_layers}]
            answers[kernel] = engine.answers(new=1)
    allowed = 2.5 * Reference(base).rounding()
    for found in answers.values():
        Reference(base).agrees(found, tolerance=allowed)


def test_an_unknown_kernel_is_refused_with_the_known_ones(tiny_base: Callable[..., AddedBase], cache: Path) -> None:
    with (
        pytest.raises(InvalidInputError, match="float-zero, pooled"),
        running(tiny_base("llama", **VLLM_SIZES).stored, cache, additional_config={"weft_int4_kernel": "fast"}),
    ):
        pass
