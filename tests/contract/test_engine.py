"""What every engine promises, whatever computes inside it."""

import dataclasses
import random
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.oracles import dense_model
from benchmarks.subjects import RandomAdapter, random_adapter
from tests.contract.conftest import Harness, MakeEngine
from weft_registry import artifact
from weft_registry.composition import composition_digest
from weft_registry.errors import (
    ExhaustedError,
    InvalidInputError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)
from weft_server.engine import AdapterHandle, FinishEvent, FinishReason, Sampling, TokenEvent

KINDS = ("lora", "qalora", "prefix", "prompt")


def assert_same(
    harness: Harness, found: list[list[int]], expected: list[list[int]], *, merged: tuple[int, ...]
) -> None:
    """The same tokens; in bfloat16 only as many of them for requests that were `merged` for some of their steps."""
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        if harness.exact or index not in merged:
            assert a == b
        else:
            assert len(a) == len(b)


def adapter(harness: Harness, kind: str, seed: int = 1) -> RandomAdapter:
    return random_adapter(kind, harness.base.stored.spec, seed, strength=0.3)


def test_greedy_tokens_are_those_of_transformers(harness: Harness) -> None:
    prompt = [3, 1, 4, 1, 5, 9]
    tokens = harness.tokens(harness.submit(prompt))
    out = dense_model(harness.base.stored).generate(
        torch.tensor([prompt]), max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert tokens == out[0, len(prompt) :].tolist()


def test_a_request_joins_a_running_batch_and_both_answer_as_alone(make_engine: MakeEngine) -> None:
    alone = make_engine()
    handles = [alone.bind(adapter(alone, kind)) for kind in KINDS]
    prompts = [[7 + 4 * i + j for j in range(2 + i % 3)] for i in range(len(KINDS))]
    expected = [alone.tokens(alone.submit(p, h, max_new_tokens=24)) for p, h in zip(prompts, handles, strict=True)]
    together = make_engine()
    handles = [together.bind(adapter(together, kind)) for kind in KINDS]
    ids = []
    for prompt, handle in zip(prompts, handles, strict=True):
        ids.append(together.submit(prompt, handle, max_new_tokens=24))
        together.wait(ids[-1], count=3)
    assert [together.tokens(request_id) for request_id in ids] == expected


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("qalora", "qalora"), ("lora", "qalora")])
def test_adapters_worn_together_are_their_sum_and_stand_by_themselves(
    kinds: tuple[str, str], make_engine: MakeEngine
) -> None:
    harness = make_engine()
    first, second = (harness.bind(adapter(harness, kind, seed)) for seed, kind in enumerate(kinds, 1))
    prompt = [3, 1, 4, 1, 5]

    def composed(*parts: tuple[AdapterHandle, float]) -> AdapterHandle:
        digest = composition_digest([(part.digest, weight) for part, weight in parts])
        handle = harness.engine.compose(parts, digest)
        assert handle.digest == digest
        harness.bound.append(handle)
        return handle

    def answer(handle: AdapterHandle | None) -> list[int]:
        return harness.tokens(harness.submit(prompt, handle, max_new_tokens=12))

    alone = answer(first)
    both = composed((first, 1.0), (second, 0.5))
    halves = composed((first, 0.5), (first, 0.5))
    nothing = composed((first, 1.0), (second, 0.0), (first, -1.0))
    harness.bound.remove(first)
    harness.engine.release(first)
    assert answer(halves) == alone
    assert answer(nothing) == answer(None)
    assert len({tuple(answer(handle)) for handle in (both, halves, second, None)}) == 4
    mixed = [harness.submit(prompt, handle, max_new_tokens=12) for handle in (both, None, second, halves)]
    assert [harness.tokens(request_id) for request_id in mixed] == [answer(h) for h in (both, None, second, halves)]


@pytest.mark.parametrize("kinds", [("lora", "prefix"), ("prefix", "lora"), ("prompt", "prompt")])
def test_what_has_no_sum_is_refused_by_name(kinds: tuple[str, str], harness: Harness) -> None:
    parts = [(harness.bind(adapter(harness, kind, seed)), 1.0) for seed, kind in enumerate(kinds, 1)]
    with pytest.raises(UnsupportedError, match=r"prefix|prompt") as caught:
        harness.engine.compose(parts, "sha256:" + "0" * 64)
    assert caught.value.reason == "NOT_COMPOSABLE"


def test_more_requests_than_the_batch_holds_all_finish(make_engine: MakeEngine) -> None:
    harness = make_engine(max_batch_size=2)
    ids = [harness.submit([i + 1, i + 2], max_new_tokens=1 + i % 5) for i in range(12)]
    assert [len(harness.tokens(request_id)) for request_id in ids] == [1 + i % 5 for i in range(12)]


def test_a_stop_token_ends_a_request_and_min_new_tokens_holds_it_off(harness: Harness) -> None:
    free = harness.tokens(harness.submit([3, 1, 4]))
    stop = free[2]
    at = free.index(stop)
    request_id = harness.submit([3, 1, 4], stop_token_ids=frozenset({stop}))
    assert harness.tokens(request_id) == free[: at + 1]
    assert harness.wait(request_id)[-1] == FinishEvent(request_id, FinishReason.EOS_TOKEN)
    later = harness.tokens(harness.submit([3, 1, 4], stop_token_ids=frozenset({stop}), min_new_tokens=6))
    assert stop not in later[:6]
    assert len(later) >= 6


def test_a_seed_reproduces_a_sample_whoever_else_is_in_the_batch(harness: Harness) -> None:
    def ask(seed: int) -> str:
        return harness.submit([3, 1, 4], sampling=Sampling(1.5, 40, 0.95, seed), max_new_tokens=16)

    first = harness.tokens(ask(7))
    others = [harness.submit([i + 1], sampling=Sampling(2.0)) for i in range(4)]
    again, different = ask(7), ask(8)
    assert harness.tokens(again) == first
    assert harness.tokens(different) != first
    assert all(harness.tokens(other) for other in others)


def test_logprobs_are_the_log_softmax_of_the_reference(harness: Harness) -> None:
    prompt = [3, 1, 4, 1]
    events = harness.wait(harness.submit(prompt, logprobs=3, max_new_tokens=2))
    with torch.inference_mode():
        logits = dense_model(harness.base.stored)(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.log_softmax(logits, -1)
    first = events[0]
    assert isinstance(first, TokenEvent)
    assert first.logprobs is not None
    tolerance = 1e-3 if harness.exact else 0.1
    assert first.logprobs.chosen == pytest.approx(float(expected[first.token_id]), abs=tolerance)
    top = expected.topk(3)
    assert [token for token, _ in first.logprobs.top] == top.indices.tolist()
    assert [value for _, value in first.logprobs.top] == pytest.approx(top.values.tolist(), abs=tolerance)


def test_cancelling_frees_a_request_and_disturbs_no_other(harness: Harness) -> None:
    expected = harness.tokens(harness.submit([5, 6], max_new_tokens=40))
    doomed = harness.submit([3, 1, 4], max_new_tokens=200)
    other = harness.submit([5, 6], max_new_tokens=40)
    harness.wait(doomed, count=2)
    harness.engine.cancel(doomed)
    assert harness.failure(doomed).error is None
    assert harness.tokens(other) == expected
    harness.engine.cancel("never heard of")


def test_a_queue_that_is_full_refuses_and_says_when_to_return(make_engine: MakeEngine) -> None:
    harness = make_engine(max_batch_size=1, max_waiting=3)
    running = harness.submit([1], max_new_tokens=240)
    harness.wait(running, count=1)
    waiting = [harness.submit([2]) for _ in range(3)]
    with pytest.raises(ExhaustedError, match="waiting") as caught:
        harness.submit([3])
    assert caught.value.retry_after_s
    harness.engine.cancel(running)
    assert all(len(harness.tokens(request_id)) == 8 for request_id in waiting)


def test_a_request_that_can_never_fit_is_refused_with_both_numbers(make_engine: MakeEngine) -> None:
    harness = make_engine(kv_bytes=40_000)
    with pytest.raises(ExhaustedError, match=rf"may reach 207 tokens.*{harness.kv_bytes}"):
        harness.submit([1] * 8, max_new_tokens=200)
    assert len(harness.tokens(harness.submit([1]))) == 8


def test_requests_beyond_the_cache_wait_for_room(make_engine: MakeEngine) -> None:
    harness = make_engine(kv_bytes=70_000)
    ids = [harness.submit([i + 1], max_new_tokens=8) for i in range(6)]
    assert all(len(harness.tokens(request_id)) == 8 for request_id in ids)


def test_an_adapter_whose_numbers_are_not_finite_fails_only_its_own_requests(harness: Harness) -> None:
    poisoned = adapter(harness, "lora", 3)
    for tensor in poisoned.tensors.values():
        tensor[:] = 1e37
    handle = harness.bind(poisoned)
    expected = harness.tokens(harness.submit([5, 6]))
    bad = harness.submit([1, 2], handle)
    good = harness.submit([5, 6])
    error = harness.failure(bad).error
    assert error is not None
    assert error.reason == "NOT_FINITE"
    assert error.metadata["adapter_digest"] == handle.digest
    assert harness.tokens(good) == expected
    # The blocks that held the NaN are reused.
    assert harness.tokens(harness.submit([5, 6])) == expected


def test_a_prompt_that_was_seen_before_is_not_computed_again(harness: Harness) -> None:
    prompt = list(range(40))
    first = harness.wait(harness.submit(prompt))
    again = harness.wait(harness.submit(prompt))
    tokens = [[event.token_id for event in events if isinstance(event, TokenEvent)] for events in (first, again)]
    assert tokens[0] == tokens[1]
    assert {getattr(event, "cached_tokens", None) for event in first} == {0}
    assert {getattr(event, "cached_tokens", None) for event in again} == {32}
    follow_up = harness.wait(harness.submit([*prompt, *tokens[0], 3, 1]))
    assert isinstance(follow_up[-1], FinishEvent)
    # 40 tokens of the prompt and 7 of the answer were computed: two whole blocks of 16.
    assert follow_up[-1].cached_tokens == 32


def test_nothing_computed_under_one_adapter_is_read_under_another(make_engine: MakeEngine) -> None:
    prompt = list(range(40))
    expected = []
    for kind in KINDS:
        alone = make_engine()
        expected.append(alone.tokens(alone.submit(prompt, alone.bind(adapter(alone, kind)))))
    together = make_engine()
    for kind, tokens in zip(KINDS, expected, strict=True):
        events = together.wait(together.submit(prompt, together.bind(adapter(together, kind))))
        assert isinstance(events[-1], FinishEvent)
        assert events[-1].cached_tokens == 0
        assert [event.token_id for event in events if isinstance(event, TokenEvent)] == tokens
    # Virtual tokens are found again too, but they are not the caller's.
    for kind in ("prefix", "prompt"):
        other = together.wait(together.submit([7], together.bind(adapter(together, kind))))[-1]
        assert isinstance(other, FinishEvent)
        assert other.cached_tokens == 0


def test_requests_that_gave_way_answer_as_if_they_had_not(make_engine: MakeEngine) -> None:
    wide, narrow = make_engine(), make_engine(kv_bytes=70_000)
    kinds = [None, *KINDS]
    answers = []
    for harness in (wide, narrow):
        handles = [None if kind is None else harness.bind(adapter(harness, kind)) for kind in kinds]
        ids = [
            harness.submit([i + 1, i + 2], handle, max_new_tokens=40, sampling=Sampling(i % 2 * 0.8, seed=i))
            for i, handle in enumerate(2 * handles)
        ]
        answers.append([harness.tokens(request_id) for request_id in ids])
    assert answers[0] == answers[1]
    assert narrow.engine.stats().blocks_used == 0


def test_the_statistics_account_for_every_request_and_token(harness: Harness) -> None:
    handle = harness.bind(adapter(harness, "lora"))
    for wearer in (None, handle, handle):
        harness.tokens(harness.submit(list(range(40)), wearer, max_new_tokens=5))
    doomed = harness.submit([1], max_new_tokens=200)
    harness.wait(doomed, count=3)
    harness.engine.cancel(doomed)
    *begun, last = harness.wait(doomed)
    before_cancel, cancelled = len(begun), not isinstance(last, FinishEvent)
    stats = harness.engine.stats()
    assert (stats.finished, stats.failed, stats.cancelled) == (4 - cancelled, 0, cancelled)
    assert (stats.running, stats.waiting, stats.active_adapters) == (0, 0, 0)
    assert stats.tokens_by_adapter == {"": 5 + before_cancel, handle.digest: 10}
    assert stats.generated_tokens == 15 + before_cancel
    assert stats.prompt_tokens + stats.cached_tokens == 3 * 40 + 1
    assert stats.cached_tokens == 32
    assert stats.blocks_used == 0
    assert stats.steps == stats.step_seconds.count == stats.step_rows.count
    if harness.engine.info.name == "vllm":
        # It does not say what lies in unused blocks, and may be a step ahead of the cancellation.
        assert 15 + before_cancel <= stats.steps <= 15 + before_cancel + 1
    else:
        assert 0 < stats.blocks_cached < stats.blocks_total
        assert stats.steps == 15 + before_cancel
        assert stats.step_rows.total == stats.prompt_tokens + stats.generated_tokens - 4
    assert stats.last_step_s > 0


@pytest.mark.parametrize("kind", ["lora", "qalora"])
def test_merging_in_mid_flight_disturbs_nobody(kind: str, harness: Harness) -> None:
    handles = [harness.bind(adapter(harness, k, s)) for k, s in ((kind, 1), ("lora", 2), ("prefix", 1))]
    wearers = [*handles, None]
    expected = [harness.tokens(harness.submit([9, 8, 7], h, max_new_tokens=40)) for h in wearers]
    ids = [harness.submit([9, 8, 7], h, max_new_tokens=40) for h in wearers]
    harness.wait(ids[0], count=5)
    outcome = harness.engine.merge(handles[0])
    assert outcome.overlay_bytes == harness.engine.overlay_bytes > 0
    assert harness.engine.merged is handles[0]
    assert_same(harness, [harness.tokens(request_id) for request_id in ids], expected, merged=(0,))
    again = [harness.submit([9, 8, 7], h, max_new_tokens=40) for h in wearers]
    harness.wait(again[0], count=5)
    harness.engine.unmerge()
    assert harness.engine.merged is None
    assert_same(harness, [harness.tokens(request_id) for request_id in again], expected, merged=(0,))
    with pytest.raises(PreconditionError, match="no adapter is merged"):
        harness.engine.unmerge()


def test_merging_another_adapter_replaces_the_first(harness: Harness) -> None:
    first, second = (harness.bind(adapter(harness, "qalora", seed)) for seed in (1, 2))
    expected = [harness.tokens(harness.submit([4, 2], h)) for h in (first, second)]
    harness.engine.merge(first)
    harness.engine.merge(second)
    assert harness.engine.merged is second
    assert [harness.tokens(harness.submit([4, 2], h)) for h in (first, second)] == expected


def test_merging_again_what_was_merged_before_builds_nothing_and_takes_a_step_at_most(harness: Harness) -> None:
    first, second = (harness.bind(adapter(harness, "qalora", seed)) for seed in (1, 2))
    expected = [harness.tokens(harness.submit([4, 2], h, max_new_tokens=40)) for h in (first, second)]
    outcomes = [harness.engine.merge(h) for h in (first, second)]
    assert not any(outcome.hot for outcome in outcomes)
    assert all(outcome.build_s > 0 for outcome in outcomes)
    harness.engine.unmerge()
    if not harness.keeps_overlays:
        assert harness.engine.overlays == {}
        assert harness.engine.overlay_bytes == 0
        assert not harness.engine.merge(first).hot
        assert harness.tokens(harness.submit([4, 2], first, max_new_tokens=40)) == expected[0]
        return
    assert harness.engine.overlays == {
        h.digest: outcome.overlay_bytes for h, outcome in zip((first, second), outcomes, strict=True)
    }
    assert harness.engine.overlay_bytes == sum(outcome.overlay_bytes for outcome in outcomes)
    ids = [harness.submit([4, 2], h, max_new_tokens=40) for h in (first, second)]
    for wanted in (first, second, second, first):
        harness.wait(ids[0], count=2)
        outcome = harness.engine.merge(wanted)
        assert harness.engine.merged is wanted
        assert outcome.hot
        assert outcome.build_s == 0.0
        assert outcome.switch_steps in (0, 1)
    assert_same(harness, [harness.tokens(request_id) for request_id in ids], expected, merged=(0, 1))


def test_a_released_adapter_takes_its_merged_weights_along(harness: Harness) -> None:
    source = adapter(harness, "qalora")
    handle = harness.bind(source)
    harness.engine.merge(handle)
    harness.engine.unmerge()
    harness.engine.release(handle)
    assert harness.engine.overlays == {}
    assert harness.engine.overlay_bytes == 0
    again = harness.bind(source)
    assert not harness.engine.merge(again).hot
    assert harness.engine.merged is again


def test_merged_weights_that_do_not_fit_are_refused_and_the_merged_adapter_stays(make_engine: MakeEngine) -> None:
    probe = make_engine()
    size_bytes = probe.engine.merge(probe.bind(adapter(probe, "lora"))).overlay_bytes
    if not probe.keeps_overlays:
        narrow = make_engine(overlay_bytes=size_bytes - 1)
        with pytest.raises(ExhaustedError, match=r"allowed for merged weights.*--overlay-memory"):
            narrow.engine.merge(narrow.bind(adapter(narrow, "lora")))
        assert narrow.engine.merged is None
        qalora = narrow.bind(adapter(narrow, "qalora"))
        narrow.engine.merge(qalora)
        assert narrow.engine.merged is qalora
        return
    harness = make_engine(overlay_bytes=2 * size_bytes - 1)
    first, second = (harness.bind(adapter(harness, "lora", seed)) for seed in (1, 2))
    harness.engine.merge(first)
    with pytest.raises(ExhaustedError, match=r"are in force.*--overlay-memory"):
        harness.engine.merge(second)
    assert harness.engine.merged is first
    harness.engine.unmerge()
    assert not harness.engine.merge(second).hot
    assert list(harness.engine.overlays) == [second.digest]


def test_an_adapter_with_a_tensor_too_many_or_too_few_is_refused_by_name(harness: Harness) -> None:
    extra = adapter(harness, "lora", 5)
    extra.tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(8, 64)
    with pytest.raises(InvalidInputError, match=r"layers\.9\.self_attn.*binds to nothing"):
        harness.bind(extra)
    missing = adapter(harness, "lora", 6)
    name = min(missing.tensors)
    del missing.tensors[name]
    with pytest.raises(InvalidInputError, match="expected, but not in the file"):
        harness.bind(missing)


def test_an_adapter_of_another_base_is_refused_with_both_fingerprints(harness: Harness, tmp_path: Path) -> None:
    other = adapter(harness, "lora", 7)
    spec = harness.base.stored.spec
    theirs = dataclasses.replace(spec.fingerprint, weights_sha256="sha256:" + "f" * 64)
    directory = tmp_path / "other-base"
    other.write(directory, dataclasses.replace(spec, fingerprint=theirs), "test/other")
    with pytest.raises(PreconditionError) as caught:
        harness.engine.bind(directory, artifact.read(directory), "sha256:" + "1" * 64)
    assert theirs.weights_sha256 in caught.value.message
    assert spec.fingerprint.weights_sha256 in caught.value.message


@pytest.mark.parametrize(("kind", "length"), [("prefix", 16), ("prompt", 20)])
def test_virtual_tokens_take_their_place_in_the_context(kind: str, length: int, harness: Harness) -> None:
    handle = harness.bind(adapter(harness, kind))
    assert harness.engine.context_room(None) - harness.engine.context_room(handle) == length


def test_a_prompt_after_virtual_tokens_is_found_again_by_its_own_adapter_alone(harness: Harness) -> None:
    text = list(range(3, 63))
    for kind in ("prefix", "prompt"):
        one, other = (harness.bind(adapter(harness, kind, seed)) for seed in (1, 2))
        first, again, foreign = (harness.wait(harness.submit(text, h, logprobs=1)) for h in (one, one, other))
        virtual = harness.engine.context_room(None) - harness.engine.context_room(one)
        counts = [getattr(events[-1], "cached_tokens", None) for events in (first, again, foreign)]
        # The blocks that virtual tokens and text fill together, without the last token, which is always computed.
        block = 32 if harness.engine.info.name == "vllm" else 16
        assert counts == [0, (virtual + len(text) - 1) // block * block - virtual, 0]
        told = [
            [e.logprobs.chosen for e in events if isinstance(e, TokenEvent) and e.logprobs is not None]
            for events in (first, again, foreign)
        ]
        # Near zero: this base repeats a token whatever it attends to. How surely it does so tells the two apart.
        assert told[0] == pytest.approx(told[1], rel=0.05)
        assert told[0] != pytest.approx(told[2], rel=0.2)


def test_closing_fails_what_runs_and_refuses_what_comes(make_engine: MakeEngine) -> None:
    harness = make_engine()
    running = harness.submit([1], max_new_tokens=240)
    harness.wait(running, count=1)
    assert harness.engine.alive
    harness.engine.close()
    assert isinstance(harness.failure(running).error, UnavailableError)
    assert not harness.engine.alive
    with pytest.raises(UnavailableError):
        harness.submit([1])


def test_submitting_and_cancelling_from_many_threads_leaves_nothing_behind(harness: Harness) -> None:
    handles = [None, *(harness.bind(adapter(harness, kind)) for kind in KINDS)]
    ids: list[str] = []

    def flood(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(10):
            request_id = harness.submit(
                [dice.randrange(500)], dice.choice(handles), max_new_tokens=dice.randrange(1, 20)
            )
            ids.append(request_id)
            if dice.random() < 0.5:
                harness.engine.cancel(request_id)

    threads = [threading.Thread(target=flood, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request_id in ids:
        last = harness.wait(request_id)[-1]
        assert isinstance(last, FinishEvent) or getattr(last, "error", 1) is None
    # Everything that was reserved is free again: the next request fits as the first did.
    assert len(harness.tokens(harness.submit([1]))) == 8
