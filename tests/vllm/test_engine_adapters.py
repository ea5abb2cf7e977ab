"""Adapters on vLLM: more of them than slots, of any rank up to the limit, and refusals by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.asked import Asked, torch_asked, vllm_asked
from weft_adapters.kinds import KINDS
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_server.vllm_engine import kinds
from weft_server.vllm_engine.engine import VllmEngine
from weft_server.vllm_engine.options import VllmEngineOptions


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., AddedBase]) -> AddedBase:
    # An own head: a tied one makes so small a model repeat its last token, whatever it attends to.
    return tiny_base(head_dim=32, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def vllm(base: AddedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Three slots of rank 16, over fewer modules than the model has; QA-LoRA takes them as LoRA does."""
    arguments = {
        "max_lora_rank": 16,
        "lora_target_modules": ["qkv_proj", "o_proj", "q_proj", "k_proj", "v_proj", "gate_up_proj"],
        "additional_config": {"weft_qalora": "expanded"},
    }
    with vllm_asked(base, tmp_path_factory.mktemp("engine"), arguments, max_active_adapters=3) as asked:
        yield asked


@pytest.fixture(scope="module")
def torch_engine(base: AddedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with torch_asked(base, tmp_path_factory.mktemp("torch")) as asked:
        yield asked


def modules(base: AddedBase) -> list[str]:
    """Those that the engine's slots cover."""
    return [name for name in base.stored.spec.linears if not name.endswith("down_proj")]


def test_more_adapters_than_slots_of_mixed_ranks_answer_as_on_the_other_engine(
    vllm: Asked, torch_engine: Asked, base: AddedBase
) -> None:
    low_rank = [("lora", 1), ("qalora", 4), ("lora", 16), ("lora", 8), ("qalora", 16), ("lora", 3)]
    shapes = [*low_rank, ("prefix", 0), ("prompt", 0)]
    adapters = [
        random_adapter(kind, base.stored.spec, seed, rank=rank, strength=0.3, targets=modules(base))
        for seed, (kind, rank) in enumerate(shapes)
    ]
    answers = []
    for engine in (torch_engine, vllm):
        handles = [None, *(engine.bind(adapter) for adapter in adapters), None]
        answers.append(engine.answers(handles))
        # Once more, with every slot taken by then.
        answers.append(engine.answers(list(reversed(handles)))[::-1])
    assert answers[1:] == answers[:1] * 3
    assert len({tuple(tokens) for tokens in answers[0]}) == len(shapes) + 1
    assert vllm.engine.launched.slots.max_loras == 3


def test_rank_and_alpha_patterns_and_rslora_keep_their_scaling(
    vllm: Asked, torch_engine: Asked, base: AddedBase
) -> None:
    plain = random_adapter("lora", base.stored.spec, 9, rank=4, strength=0.3, targets=modules(base))
    first = modules(base)[0]
    params = dataclasses.replace(
        plain.params, use_rslora=True, rank_pattern={first: 2}, alpha_pattern={modules(base)[3]: 20.0}
    )
    tensors = {
        name: tensor[:2] if first in name and "lora_A" in name else tensor[:, :2] if first in name else tensor
        for name, tensor in plain.tensors.items()
    }
    patterned = RandomAdapter("lora", params, {name: tensor.contiguous() for name, tensor in tensors.items()})
    found = [engine.answers([engine.bind(a) for a in (plain, patterned)]) for engine in (torch_engine, vllm)]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_a_rank_above_the_slots_is_refused_with_the_limit(vllm: Asked, base: AddedBase) -> None:
    with pytest.raises(UnsupportedError, match=r"has rank 17 .*slots hold 16.*--vllm max_lora_rank") as caught:
        vllm.bind(random_adapter("lora", base.stored.spec, 1, rank=17, targets=modules(base)))
    assert caught.value.reason == "LORA_RANK"


def test_a_module_that_vllm_does_not_wrap_is_refused_by_name(vllm: Asked, base: AddedBase) -> None:
    with pytest.raises(UnsupportedError, match=r"adapts model\.layers\.0\.mlp\.down_proj and 1 more") as caught:
        vllm.bind(random_adapter("lora", base.stored.spec, 1))
    assert caught.value.reason == "LORA_MODULE"


def test_a_kind_without_an_entry_is_refused_by_name(
    vllm: Asked, base: AddedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kinds.SERVED.keys() <= KINDS.keys()
    monkeypatch.setattr(kinds, "SERVED", {"prefix": kinds.SERVED["prefix"]})
    with pytest.raises(
        UnsupportedError, match="does not serve adapters of the kind 'lora'; it serves prefix"
    ) as caught:
        vllm.bind(random_adapter("lora", base.stored.spec, 1, targets=modules(base)))
    assert caught.value.metadata == {"kind": "lora", "engine": "vllm"}


@pytest.mark.parametrize("named", [None, ["q_proj", "model.embed_tokens"]])
def test_slots_for_the_token_embedding_are_refused(named: list[str] | None, base: AddedBase, tmp_path: Path) -> None:
    options = VllmEngineOptions(cache=tmp_path, dtype="float32", arguments={"lora_target_modules": named})
    with pytest.raises(InvalidInputError, match="without embed_tokens"):
        VllmEngine(base.stored, options)


def test_slots_that_do_not_fit_are_refused_before_anything_starts(base: AddedBase, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"--adapter-memory 1000: one slot .*give at least \d+"):
        VllmEngine(base.stored, VllmEngineOptions(cache=tmp_path, dtype="float32", adapter_bytes=1000))


def test_a_setting_that_vllm_refuses_is_told_in_its_words(base: AddedBase, tmp_path: Path) -> None:
    options = VllmEngineOptions(cache=tmp_path, arguments={"max_num_seqs": -3})
    with pytest.raises(InvalidInputError, match=r"vLLM refuses its settings: .*max_num_seqs") as caught:
        VllmEngine(base.stored, options)
    assert caught.value.reason == "VLLM_SETTINGS"
    assert not list(tmp_path.glob("vllm-adapters-*"))
