"""QA-LoRA on pooled inputs: mixed with everything else, with few slots for LoRA, loaded and unloaded, and refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from tests.vllm.asked import Asked, torch_asked, vllm_asked
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_server.vllm_engine.pooled.path import lora_slots, why_expanded

RANK = 8


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., AddedBase]) -> AddedBase:
    return tiny_base(head_dim=32)


@pytest.fixture(scope="module")
def vllm(base: AddedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Five slots, two of which hold a LoRA."""
    arguments = {"max_lora_rank": RANK, "max_loras": 5, "additional_config": {"weft_lora_slots": 2}}
    with vllm_asked(base, tmp_path_factory.mktemp("engine"), arguments) as asked:
        yield asked


@pytest.fixture(scope="module")
def torch_engine(base: AddedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with torch_asked(base, tmp_path_factory.mktemp("torch")) as asked:
        yield asked


SHAPES = [
    ("lora", 1),
    ("qalora", 4),
    ("lora", 8),
    ("qalora", 1),
    ("prefix", 0),
    ("qalora", 8),
    ("lora", 5),
    ("qalora", 3),
    ("lora", 2),
    ("qalora", 7),
    ("qalora", 2),
]


def test_more_adapters_than_slots_of_either_sort_answer_as_on_the_other_engine(
    vllm: Asked, torch_engine: Asked, base: AddedBase
) -> None:
    adapters = [
        random_adapter(kind, base.stored.spec, seed, rank=rank, strength=0.3)
        for seed, (kind, rank) in enumerate(SHAPES)
    ]
    answers = []
    for engine in (torch_engine, vllm):
        handles = [None, *(engine.bind(adapter) for adapter in adapters), None]
        orders = [list(range(len(handles))) for _ in range(3)]
        for order in orders[1:]:
            random.Random(len(order)).shuffle(order)
        for order in orders:
            found = engine.answers([handles[index] for index in order])
            answers.append([found[order.index(index)] for index in range(len(handles))])
        answers.append([engine.answers([handle])[0] for handle in handles])
        for handle in filter(None, handles):
            engine.engine.release(handle)
    assert answers[1:] == answers[:1] * 7
    assert len({tuple(tokens) for tokens in answers[0]}) == len(SHAPES) + 1
    slots = vllm.engine.launched.slots
    assert (slots.max_loras, slots.lora_slots, vllm.engine.launched.why_expanded) == (5, 2, "")


def test_adapters_come_and_go_at_run_time(vllm: Asked, torch_engine: Asked, base: AddedBase) -> None:
    chance = random.Random(5)
    held: list[tuple[Any, Any]] = []
    for seed in range(40, 52):
        adapter = random_adapter(chance.choice(["lora", "qalora"]), base.stored.spec, seed, rank=4, strength=0.3)
        held.append((torch_engine.bind(adapter), vllm.bind(adapter)))
        while len(held) > 4:
            for engine, handle in zip((torch_engine, vllm), held.pop(chance.randrange(4)), strict=True):
                engine.engine.release(handle)
        theirs, ours = ([None, *handles] for handles in zip(*held, strict=True))
        assert vllm.answers(ours, 6) == torch_engine.answers(theirs, 6)
    for pair in held:
        for engine, handle in zip((torch_engine, vllm), pair, strict=True):
            engine.engine.release(handle)


def test_a_merged_qalora_answers_as_it_did(vllm: Asked, base: AddedBase) -> None:
    pooled = vllm.bind(random_adapter("qalora", base.stored.spec, 60, strength=0.3))
    other = vllm.bind(random_adapter("lora", base.stored.spec, 61, strength=0.3))
    before = vllm.answers([None, pooled, other])
    vllm.engine.merge(pooled)
    assert vllm.answers([pooled]) == before[1:2]
    assert vllm.answers([None, pooled, other]) == before
    vllm.engine.unmerge()
    assert vllm.answers([None, pooled, other]) == before
    for handle in (pooled, other):
        vllm.engine.release(handle)


@pytest.mark.parametrize(("kind", "other"), [("qalora", "lora"), ("lora", "qalora"), ("lora", "lora")])
def test_an_adapter_that_is_not_finite_fails_alone_and_so_do_its_blocks(
    vllm: Asked, base: AddedBase, kind: str, other: str
) -> None:
    broken = random_adapter(kind, base.stored.spec, 70, strength=0.3)
    for tensor in broken.tensors.values():
        tensor.fill_(1e30)
    good, bad = vllm.bind(random_adapter(other, base.stored.spec, 71, strength=0.3)), vllm.bind(broken)
    alone, without = vllm.answers([good, None])
    for _ in range(3):
        # vLLM uses a block again at once.
        assert vllm.ends([bad]) == ["NOT_FINITE"]
        assert vllm.answers([good]) == [alone]
        assert vllm.ends([bad, good, None, good, bad]) == ["NOT_FINITE", alone, without, alone, "NOT_FINITE"]
    for handle in (good, bad):
        vllm.engine.release(handle)


def test_an_adapters_memory_is_that_of_its_own_a(vllm: Asked, base: AddedBase) -> None:
    spec = base.stored.spec
    group = spec.fingerprint.quant.group_size
    handles = {kind: vllm.bind(random_adapter(kind, spec, 80, rank=4)) for kind in ("lora", "qalora")}
    for kind, wide in (("lora", 1), ("qalora", group)):
        assert handles[kind].size_bytes == 4 * 4 * sum(n_out + n_in // wide for n_out, n_in in spec.linears.values())
        vllm.engine.release(handles[kind])


def test_a_rank_above_the_slots_is_refused_before_the_engine(vllm: Asked, base: AddedBase) -> None:
    with pytest.raises(UnsupportedError, match=r"has rank 9 .*slots hold 8") as caught:
        vllm.bind(random_adapter("qalora", base.stored.spec, 1, rank=9))
    assert caught.value.reason == "LORA_RANK"
    assert vllm.answers([None]) == vllm.answers([None])


@pytest.mark.parametrize(
    ("arguments", "on_cpu", "why"),
    [
        ({}, True, ""),
        ({"additional_config": {"weft_qalora": "pooled", "weft_int4_kernel": "pooled"}}, True, ""),
        ({"enforce_eager": True}, False, ""),
        ({}, False, "for layers are compiled and captured (--vllm enforce_eager=true has them run eagerly)"),
        ({"additional_config": {"weft_qalora": "expanded"}}, True, "for additional_config asks for it"),
        ({"fully_sharded_loras": True}, True, "for fully_sharded_loras cuts slots another way"),
    ],
)
def test_why_qalora_is_expanded_is_said(arguments: dict[str, Any], on_cpu: bool, why: str) -> None:
    assert why_expanded(arguments, on_cpu=on_cpu) == why


@pytest.mark.parametrize(
    ("read", "setting"),
    [
        (partial(why_expanded, on_cpu=True), {"weft_qalora": "poold"}),
        (partial(why_expanded, on_cpu=True), {"weft_qalorra": "pooled"}),
        (partial(lora_slots, expanded=""), {"weft_lora_slots": 0}),
        (partial(lora_slots, expanded=""), {"weft_lora_slots": "two"}),
        (partial(lora_slots, expanded="for some reason"), {"weft_lora_slots": 2}),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(read: Callable[..., Any], setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=f"additional_config: {next(iter(setting))} is "):
        read({"additional_config": setting})


def test_more_slots_for_lora_than_slots_are_refused_before_anything_starts(base: AddedBase, tmp_path: Path) -> None:
    arguments = {"max_loras": 2, "additional_config": {"weft_lora_slots": 3}}
    refused = pytest.raises(InvalidInputError, match="3 slots for LoRA, and there are 2 in all")
    with refused, vllm_asked(base, tmp_path, arguments):
        raise AssertionError("it started")
