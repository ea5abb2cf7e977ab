"""Prefix adapters in vLLM, against transformers with the same keys and values in its cache: the same tokens.

One engine serves all tests: blocks of 32, at most 48 tokens computed in a step, and room for a few requests only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vllm.prefixes import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    SHAPE,
    Row,
    Tiny,
    check,
    expected,
    make_lora,
    make_prefix,
    run,
    same,
    started,
)
from tests.vllm.tiny import text
from weft_registry import digest as digests
from weft_registry.errors import CorruptionError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_source: Callable[..., Path]) -> Iterator[Tiny]:
    with started(tiny_source("llama", **SHAPE), tmp_path_factory.mktemp("prefixes")) as engine:
        yield engine


def forget(tiny: Tiny) -> None:
    """Empties vLLM's cache."""
    assert tiny.llm.reset_prefix_cache()


# Less than a block, one less and one more than a block, whole blocks, and more than a step computes.
@pytest.mark.parametrize("num_virtual_tokens", [1, 5, 31, 32, 33, 64, 101])
def test_a_prefix_of_any_length_gives_the_tokens_of_transformers(tiny: Tiny, num_virtual_tokens: int) -> None:
    forget(tiny)
    prefix = make_prefix(tiny.root, num_virtual_tokens, 1)
    plain = Row(text(1, 9))
    with_it = plain._replace(prefix=prefix)
    assert expected(tiny, with_it) != expected(tiny, plain)
    check(tiny, [with_it])
    check(tiny, [Row(text(1, 1), prefix), Row(text(2, 70), prefix)])


def test_prefixes_loras_and_base_rows_share_a_batch(tiny: Tiny, tmp_path: Path) -> None:
    one, other = make_prefix(tiny.root, 5, 2), make_prefix(tiny.root, 40, 3)
    loras = [make_lora(tmp_path / f"lora-{seed}", seed) for seed in (0, 1)]
    prompt = text(3, 12)
    rows = [
        Row(prompt),
        Row(prompt, one),
        Row(prompt, lora=loras[0]),
        Row(prompt, other),
        Row(prompt, other, loras[1]),
        Row(prompt, lora=loras[1]),
        Row(text(4, 60), one),
        Row(prompt),
    ]
    assert len({tuple(expected(tiny, row)) for row in rows}) == 7
    for _ in range(2):  # Computed, then from the cache.
        check(tiny, rows)


def test_blocks_are_shared_within_a_version_and_never_between_two(tiny: Tiny) -> None:
    forget(tiny)
    prompt = text(5, 40)
    old, new = make_prefix(tiny.root, 40, 4), make_prefix(tiny.root, 40, 5)
    (first,) = check(tiny, [Row(prompt, old)])
    # To vLLM virtual tokens count as cached, whoever provided them.
    assert first.num_cached_tokens == 40
    (second,) = check(tiny, [Row(prompt, old)])
    assert second.num_cached_tokens == 64
    (third,) = check(tiny, [Row(prompt, new)])
    assert third.num_cached_tokens == 40
    # Another text: the first block is all prefix, and the tail of the prefix is written beside the new text.
    (fourth,) = check(tiny, [Row(text(6, 40), old)])
    assert fourth.num_cached_tokens == 40
    check(tiny, [Row(prompt, new), Row(prompt, old), Row(prompt)])


def test_preempted_requests_go_on_with_their_prefix(tiny: Tiny) -> None:
    forget(tiny)
    prefixes = [make_prefix(tiny.root, 37, seed) for seed in (6, 7, 8, 9)]
    rows = [Row(text(10 + i, 20), prefix, length=100) for i, prefix in enumerate(prefixes)]

    def preemptions() -> int:
        return sum(int(metric.value) for metric in tiny.llm.get_metrics() if metric.name == "vllm:num_preemptions")

    before = preemptions()
    check(tiny, rows)
    assert preemptions() > before


def test_a_damaged_file_fails_its_requests_and_no_others(tiny: Tiny) -> None:
    forget(tiny)
    good, bad = make_prefix(tiny.root, 33, 10), make_prefix(tiny.root, 33, 11)
    file = Path(bad.file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    rows = [Row(text(20, 8), good), Row(text(20, 8), bad), Row(text(20, 8), bad), Row(text(20, 8))]
    outputs = run(tiny, rows)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "error", "length"]
    for row, output in zip(rows, outputs, strict=True):
        if row.prefix is not bad:
            same(tiny, row, output)
    # Nothing of it stayed in the cache: mended, it is right.
    file.write_bytes(whole)
    check(tiny, rows)


def test_what_is_no_prefix_request_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    forget(tiny)
    good = make_prefix(tiny.root, 33, 12)
    outside = make_prefix(tmp_path, 33, 13)
    missing = replace(good, digest=digests.of_bytes(b"missing"), file=str(tiny.root / "missing"))
    short = replace(make_prefix(tiny.root, 34, 14), num_virtual_tokens=33)
    row = Row(text(21, 8))
    broken = [
        row._replace(prefix=outside),
        row._replace(prefix=missing),
        row._replace(prefix=short),
        row._replace(prefix=good, options={"prompt_logprobs": 1}),
        row._replace(prefix=good, options={"extra_args": None}),
        row._replace(prefix=good, options={"extra_args": {"kv_transfer_params": {"weft_prefix": {"digest": 1}}}}),
    ]
    outputs = run(tiny, [*broken, row._replace(prefix=good), row])
    assert [output.outputs[0].finish_reason for output in outputs] == ["error"] * len(broken) + ["length"] * 2
    check(tiny, [row._replace(prefix=good), row])


def test_workers_read_ahead_and_forget(tiny: Tiny) -> None:
    adapter = make_prefix(tiny.root, 50, 15)
    size = 50 * LAYERS * 2 * HEADS * HEAD_DIM * 4
    assert tiny.llm.collective_rpc("weft_load_prefix", args=(vars(adapter),)) == [size]
    # From now on its requests need no file.
    Path(adapter.file).rename(adapter.file + ".away")
    (output,) = run(tiny, [Row(text(22, 8), adapter)])
    assert output.outputs[0].finish_reason == "length"
    (held,) = tiny.llm.collective_rpc("weft_forget_prefix", args=(adapter.digest,))
    forget(tiny)
    (output,) = run(tiny, [Row(text(22, 8), adapter)])
    assert output.outputs[0].finish_reason == "error"
    Path(adapter.file + ".away").rename(adapter.file)
    assert tiny.llm.collective_rpc("weft_load_prefix", args=(vars(adapter),)) == [size]
    assert tiny.llm.collective_rpc("weft_forget_prefix", args=(adapter.digest,)) == [held]
    with pytest.raises(CorruptionError, match="digest"):
        tiny.llm.collective_rpc("weft_load_prefix", args=(vars(adapter) | {"sha256": digests.of_bytes(b"")},))
