"""Merging by policy and by people, on a real server in this process; time is what the clock is told."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_client import AsyncInferenceClient
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push
from weft_server.engine import AdapterHandle, MergeOutcome
from weft_server.merge_control import MergeControl, merge_rule
from weft_server.merge_policy import MergeRule
from weft_server.options import ServeOptions
from weft_server.residency import Residency
from weft_server.serving import running
from weft_server.torch_engine.engine import TorchEngine

RULE = MergeRule(share=0.8, hysteresis=0.2, window_s=10.0, min_tokens=20, min_interval_s=10.0)
NAMES = ("lora", "qalora", "prefix", "other")


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Server:
    """A server without a process of its own."""

    client: AsyncInferenceClient
    control: MergeControl
    residency: Residency
    engine: TorchEngine
    clock: Clock

    async def ask(self, wearers: Sequence[str]) -> list[tuple[int, ...]]:
        """The greedy tokens of one request each, all at once; an empty name is the base model."""
        adapters = [f"test/{name}" if name else "" for name in wearers]
        done = await asyncio.gather(
            *(self.client.generate("what is the capital", a, max_new_tokens=12, ignore_eos=True) for a in adapters)
        )
        return [completion.token_ids for completion in done]

    async def tick(self, seconds: float = 1.0) -> str | None:
        """One look of the policy, so much later; answers the name of who was merged, "unmerged", or None."""
        self.clock.now_s += seconds
        switch = await self.control.tick()
        if switch is None:
            return None
        merged = self.merged
        assert (merged is None) == (switch.digest is None)
        return merged or "unmerged"

    @property
    def merged(self) -> str | None:
        return next((r.reference.removeprefix("test/") for r in self.residency.resident() if r.merged), None)


MakeServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def make_server(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> AsyncIterator[MakeServer]:
    """`await make_server(rule, **options)`: a server, and a policy over it that looks only when told to."""
    base, home = tiny_base(), Home(tmp_path / "home")
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    registry = EmbeddedRegistry(home)
    for seed, name in enumerate(NAMES):
        kind = "qalora" if name == "other" else name
        adapter = random_adapter(kind, base.stored.spec, seed, strength=0.3)
        adapter.write(tmp_path / name, base.stored.spec, f"test/{name}")
        push(registry, tmp_path / name, AdapterName("test", name))
    registry.close()
    async with AsyncExitStack() as stack:

        async def make(rule: MergeRule | None = RULE, **options: object) -> Server:
            settings = ServeOptions(base.name, port=0, dtype="float32", home=home, grace_s=0.0, **options)
            server = await stack.enter_async_context(running(settings))
            client = AsyncInferenceClient(server.address, timeout_s=60)
            stack.push_async_callback(client.close)
            clock = Clock()
            control = MergeControl(server.residency, server.engine, rule, clock)
            return Server(client, control, server.residency, server.engine, clock)

        yield make


async def test_the_dominant_adapter_is_merged_and_later_unmerged_and_every_answer_stays(
    make_server: MakeServer,
) -> None:
    server = await make_server()
    mostly = ["qalora"] * 9 + ["other"]
    mixed = ["qalora", "other", "lora", "prefix", ""] * 2
    expected, expected_mixed = await server.ask(mostly), await server.ask(mixed)
    assert len(set(expected_mixed)) == 5
    assert await server.tick() is None
    assert await server.ask(mostly) == expected
    assert await server.tick(9) is None
    assert await server.ask(mostly) == expected
    assert await server.tick(2) == "qalora"
    # While it is merged: alone, dominant, and in a batch of every kind.
    assert await server.ask(mostly) == expected
    assert await server.ask(mixed) == expected_mixed
    assert await server.tick(5) is None, "too soon, whatever the traffic"
    assert await server.ask(mixed * 2) == expected_mixed * 2
    assert await server.tick(6) == "unmerged"
    assert await server.ask(mixed) == expected_mixed
    (resident,) = [r for r in (await server.client.resident()).adapters if r.reference == "test/qalora"]
    assert resident.hot
    assert not resident.merged


async def test_going_back_to_an_adapter_that_was_merged_before_builds_nothing(make_server: MakeServer) -> None:
    server = await make_server(replace(RULE, hysteresis=0.6))
    merged: list[str | None] = []
    for name in ("qalora", "other", "qalora", "other"):
        for _ in range(3):
            await server.ask([name] * 4)
            merged.append(await server.tick(6))
    assert [name for name in merged if name] == ["qalora", "other", "qalora", "other"]
    assert len(server.engine.overlays) == 2
    _, outcome = await server.control.merge("test/qalora")
    assert outcome.hot
    assert outcome.build_s == 0
    assert outcome.switch_steps in (0, 1)


async def test_a_person_comes_before_the_policy(make_server: MakeServer) -> None:
    server = await make_server()
    await server.control.merge("test/other")
    for _ in range(8):
        await server.ask(["qalora"] * 4)
        assert await server.tick(5) is None
    assert server.merged == "other"
    # What the person unmerged is another adapter than the dominant one, which may now be merged.
    await server.control.unmerge()
    await server.ask(["qalora"] * 4)
    assert await server.tick(10) == "qalora"
    await server.control.unmerge()
    for _ in range(8):
        await server.ask(["qalora"] * 4)
        assert await server.tick(5) is None, "a person has just unmerged it, and the traffic is the same"
    with pytest.raises(PreconditionError, match="no adapter is merged"):
        await server.control.unmerge()


async def test_weights_that_do_not_fit_are_tried_once_until_the_adapter_is_loaded_again(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(overlay_bytes=1000)
    expected = await server.ask(["lora"] * 4)
    tried: list[str] = []
    merge = server.engine.merge

    def counting(adapter: AdapterHandle) -> MergeOutcome:
        tried.append(adapter.digest)
        return merge(adapter)

    monkeypatch.setattr(server.engine, "merge", counting)
    for _ in range(6):
        assert await server.ask(["lora"] * 4) == expected
        assert await server.tick(6) is None
    assert len(tried) == 1
    await server.client.unload("test/lora")
    for _ in range(6):
        assert await server.ask(["lora"] * 4) == expected
        assert await server.tick(6) is None
    assert len(tried) == 2


async def test_a_kind_that_changes_no_weight_is_left_alone(make_server: MakeServer) -> None:
    server = await make_server()
    for _ in range(6):
        await server.ask(["prefix"] * 4)
        assert await server.tick(6) is None
    assert server.engine.overlays == {}


async def test_without_a_policy_nothing_is_merged_unless_asked_for(make_server: MakeServer) -> None:
    server = await make_server(None)
    await server.control.run()
    for _ in range(4):
        await server.ask(["qalora"] * 4)
        assert await server.tick(6) is None
    await server.control.merge("test/qalora")
    assert server.merged == "qalora"
    await server.control.unmerge()


async def test_a_server_told_to_merges_by_itself_and_says_so(make_server: MakeServer) -> None:
    server = await make_server(None, merge_policy="auto", merge_window_s=0.2)
    expected = await server.ask(["qalora"])
    while server.merged is None:
        assert await server.ask(["qalora"]) == expected
    assert await server.ask(["qalora"]) == expected
    (resident,) = (await server.client.resident()).adapters
    assert resident.hot
    digest = (await server.client.unmerge()).adapter_digest
    assert digest == resident.digest


def test_options_make_a_rule_or_say_what_is_wrong() -> None:
    options = ServeOptions("tiny", merge_policy="auto", merge_share=0.9, merge_window_s=4.0)
    rule = merge_rule(options)
    assert rule is not None
    assert (rule.share, rule.window_s, rule.min_interval_s, rule.min_tokens) == (0.9, 4.0, 4.0, 40)
    assert merge_rule(ServeOptions("tiny")) is None
    with pytest.raises(InvalidInputError, match="--merge-share: without effect"):
        merge_rule(ServeOptions("tiny", merge_share=0.9))
    with pytest.raises(InvalidInputError, match="expected off or auto"):
        merge_rule(ServeOptions("tiny", merge_policy="sometimes"))
