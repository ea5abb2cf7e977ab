"""When an adapter is merged without being asked: on a simulated clock, over simulated mixes of traffic."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_registry.errors import InvalidInputError
from weft_server.merge_policy import MergePolicy, MergeRule, Switch

RULE = MergeRule(share=0.8, hysteresis=0.2, window_s=10.0, min_tokens=100, min_interval_s=10.0)


@dataclass
class Simulation:
    """Traffic second by second; what the policy wants is done at once."""

    rule: MergeRule = RULE
    candidates: set[str] = field(default_factory=lambda: {"a", "b", "c"})
    failing: set[str] = field(default_factory=set)
    too_large: set[str | None] = field(default_factory=set)
    """Beside whom nothing else can be merged."""
    now_s: float = 0.0
    merged: str | None = None
    switches: list[tuple[float, Switch]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = MergePolicy(self.rule)

    def second(self, tokens: Mapping[str, int]) -> Switch | None:
        self.now_s += 1.0
        self.policy.observe(self.now_s, tokens)
        switch = self.policy.decide(self.now_s, merged=self.merged, candidates=self.candidates)
        if switch is not None:
            self.switches.append((self.now_s, switch))
            if switch.digest in self.failing:
                self.policy.failed(self.now_s, switch.digest)
            elif switch.digest is not None and self.merged in self.too_large:
                self.policy.failed(self.now_s, switch.digest, beside=self.merged)
            else:
                self.merged = switch.digest
                self.policy.switched(self.now_s)
        return switch

    def run(self, seconds: Iterable[Mapping[str, int]]) -> list[str | None]:
        before = len(self.switches)
        for tokens in seconds:
            self.second(tokens)
        return [switch.digest for _, switch in self.switches[before:]]


def test_a_dominant_adapter_is_merged_once_a_window_has_been_seen_and_stays() -> None:
    simulation = Simulation()
    assert simulation.run([{"a": 90, "b": 10}] * 10) == []
    assert simulation.run([{"a": 90, "b": 10}] * 100) == ["a"]


def test_without_a_dominant_adapter_nothing_is_merged() -> None:
    simulation = Simulation()
    assert simulation.run([{"a": 40, "b": 35, "c": 25}] * 100) == []
    assert simulation.run([{"a": 79, "b": 21}] * 100) == []


def test_tokens_of_the_base_count_against_a_share() -> None:
    assert Simulation().run([{"a": 70, "": 30}] * 100) == []
    assert Simulation().run([{"": 100}] * 100) == []


def test_another_dominant_adapter_takes_the_place_of_the_first_in_one_switch() -> None:
    simulation = Simulation()
    simulation.run([{"a": 100}] * 20)
    assert simulation.merged == "a"
    # The first second in which b has 80% of the window is long after a fell below 60%: then it is dropped, once.
    assert simulation.run([{"b": 100}] * 30) == [None, "b"]
    quick = Simulation(rule=MergeRule(share=0.8, hysteresis=0.6, window_s=10, min_tokens=100, min_interval_s=10))
    quick.run([{"a": 100}] * 20)
    assert quick.run([{"b": 100}] * 30) == ["b"]


def test_the_merged_adapter_is_unmerged_below_the_lower_threshold_and_not_before() -> None:
    simulation = Simulation()
    simulation.run([{"a": 100}] * 20)
    assert simulation.run([{"a": 61, "b": 39}] * 60) == []
    assert simulation.run([{"a": 50, "b": 50}] * 60) == [None]


def test_a_mix_that_flaps_around_the_threshold_switches_once() -> None:
    flapping = [{"a": 75, "b": 25}, {"a": 85, "b": 15}]
    for period in (1, 5, 10, 25):
        simulation = Simulation()
        seconds = [flapping[second // period % 2] for second in range(1000)]
        assert simulation.run(seconds) in ([], ["a"])


def test_alternating_traffic_switches_at_most_once_an_interval() -> None:
    simulation = Simulation()
    seconds = [{"a": 100} if second // 15 % 2 else {"b": 100} for second in range(600)]
    simulation.run(seconds)
    times = [time for time, _ in simulation.switches]
    assert 2 <= len(times) <= 60
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(times))


def test_traffic_that_alternates_faster_than_the_window_never_switches() -> None:
    simulation = Simulation()
    assert simulation.run([{"a": 100} if second % 2 else {"b": 100} for second in range(300)]) == []


def test_few_tokens_are_not_believed() -> None:
    simulation = Simulation()
    assert simulation.run([{"a": 9}] * 100) == []
    assert simulation.run([{"a": 11}] * 20) == ["a"]
    # And they unmerge nothing, as long as some are the merged adapter's.
    assert simulation.run([{"a": 1, "b": 3}] * 5 + [{"a": 1}] * 100) == []


def test_a_merged_adapter_that_nobody_asks_for_gives_its_memory_back() -> None:
    simulation = Simulation()
    simulation.run([{"a": 100}] * 20)
    assert simulation.run([{}] * 9) == []
    assert simulation.run([{}] * 100) == [None]


def test_an_adapter_that_cannot_be_merged_or_is_not_in_memory_never_is() -> None:
    assert Simulation(candidates={"b"}).run([{"a": 100}] * 100) == []


def test_a_failed_merge_is_not_retried_until_the_adapter_is_reloaded() -> None:
    simulation = Simulation(failing={"a"})
    assert simulation.run([{"a": 100}] * 200) == ["a"]
    simulation.policy.reloaded("a")
    assert simulation.run([{"a": 100}] * 50) == ["a"]
    simulation.candidates.remove("a")
    assert simulation.run([{"a": 100}] * 50) == []
    simulation.candidates.add("a")
    simulation.failing.clear()
    assert simulation.run([{"a": 100}] * 50) == ["a"]


def test_what_did_not_fit_beside_another_is_tried_once_more_without_it() -> None:
    rule = MergeRule(share=0.8, hysteresis=0.6, min_tokens=100)
    for fits_alone, expected in ((True, ["b", None, "b"]), (False, ["b", None, "b"])):
        simulation = Simulation(rule=rule)
        simulation.run([{"a": 100}] * 20)
        simulation.too_large = {"a", None} if not fits_alone else {"a"}
        assert simulation.run([{"b": 100}] * 200) == expected
        assert simulation.merged == ("b" if fits_alone else None)


def test_what_a_person_merged_stays_until_a_person_unmerges_it() -> None:
    simulation = Simulation()
    simulation.run([{"a": 100}] * 20)
    simulation.merged = "c"
    simulation.policy.pin(simulation.now_s)
    assert simulation.policy.paused
    assert simulation.run([{"a": 100}] * 100) == []
    simulation.merged = None
    simulation.policy.unpin(simulation.now_s, "c")
    assert simulation.run([{"a": 100}] * 100) == ["a"]


def test_what_a_person_unmerged_is_merged_again_only_after_the_mix_has_changed() -> None:
    simulation = Simulation()
    simulation.run([{"a": 100}] * 20)
    simulation.merged = None
    simulation.policy.unpin(simulation.now_s, "a")
    assert simulation.run([{"a": 100}] * 200) == []
    assert simulation.run([{}] * 200 + [{"a": 100}] * 20) == [], "silence is no change of the mix"
    assert simulation.run([{"a": 50, "b": 50}] * 20 + [{"a": 100}] * 30) == ["a"]


def test_a_rule_that_means_nothing_is_refused_by_the_name_of_its_option() -> None:
    for wrong, named in (({"share": 1.5}, "--merge-share"), ({"window_s": 0.0}, "--merge-window")):
        with pytest.raises(InvalidInputError, match=named):
            MergeRule(**wrong)
    with pytest.raises(InvalidInputError):
        MergeRule(min_tokens=0)
    assert MergeRule(share=0.1).leave_share == 0.0


traffic = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),
        st.dictionaries(st.sampled_from(["a", "b", "c", ""]), st.integers(0, 300), max_size=4),
        st.sampled_from(["", "", "", "", "pin", "unpin", "fail"]),
    ),
    max_size=60,
)
rules = st.builds(
    MergeRule,
    share=st.floats(0, 1),
    hysteresis=st.floats(0, 1),
    window_s=st.floats(0.5, 30),
    min_tokens=st.integers(1, 400),
    min_interval_s=st.floats(0, 30),
)


@given(rule=rules, steps=traffic)
def test_every_switch_is_due_by_the_plain_reading_of_the_rule(
    rule: MergeRule, steps: list[tuple[float, dict[str, int], str]]
) -> None:
    policy, merged, pinned = MergePolicy(rule), None, False
    failed: set[str] = set()
    last_switch_s = -1e9
    log: list[tuple[float, dict[str, int]]] = []
    now_s = 0.0
    for wait_s, tokens, happens in steps:
        now_s += wait_s
        policy.observe(now_s, tokens)
        log.append((now_s, tokens))
        if happens == "pin":
            merged, pinned, last_switch_s = "c", True, now_s
            policy.pin(now_s)
        elif happens == "unpin" and merged is not None:
            policy.unpin(now_s, merged)
            merged, pinned, last_switch_s = None, False, now_s
        switch = policy.decide(now_s, merged=merged, candidates={"a", "b", "c"})
        if switch is None:
            continue
        window: dict[str, int] = {}
        for at_s, counts in log:
            if now_s - at_s < rule.window_s:
                for digest, count in counts.items():
                    window[digest] = window.get(digest, 0) + count
        total = sum(window.values())
        assert not pinned
        assert now_s - last_switch_s >= rule.min_interval_s
        if switch.digest is not None:
            assert total >= rule.min_tokens
            assert window[switch.digest] / total >= rule.share
            assert switch.digest not in failed | {"", merged}
        else:
            assert merged is not None
        if merged is not None:
            left = window.get(merged, 0)
            assert left == 0 or (total >= rule.min_tokens and left / total < rule.leave_share)
        last_switch_s = now_s
        if happens == "fail" and switch.digest is not None:
            failed.add(switch.digest)
            policy.failed(now_s, switch.digest)
        else:
            merged = switch.digest
            policy.switched(now_s)
