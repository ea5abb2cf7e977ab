"""What a server refuses for want of room, over gRPC: the status, its reason, and that nothing is left of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tests.server.homes import prepare
from tests.tiny_models import AddedBase
from weft.v1 import inference_pb2 as pb
from weft.v1 import inference_pb2_grpc as pb_grpc
from weft_client import AsyncInferenceClient
from weft_registry.errors import ExhaustedError
from weft_registry.home import Home
from weft_server.options import ServeOptions
from weft_server.serving import Running, running
from weft_server.torch_engine.blocks import BLOCK_TOKENS
from weft_server.torch_engine.scheduler import Part, Scheduler

MAX_WAITING = 3
KV_BLOCKS = 4


class Small(NamedTuple):
    """A server with room for little, and two ways to ask it."""

    server: Running
    client: AsyncInferenceClient
    stub: Any
    kv_bytes: int


@pytest.fixture
async def small(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> AsyncIterator[Small]:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    config = base.stored.config
    # Keys and values, in float32.
    kv_bytes = KV_BLOCKS * BLOCK_TOKENS * 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    options = ServeOptions(
        base.name, port=0, dtype="float32", grace_s=0, home=home, max_waiting=MAX_WAITING, kv_bytes=kv_bytes
    )
    async with (
        running(options) as server,
        AsyncInferenceClient(server.address, timeout_s=120) as client,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Small(server, client, pb_grpc.InferenceServiceStub(channel), kv_bytes)


async def nothing_is_left(small: Small) -> None:
    """Waits for the requests to end, and sees that memory, queue and leases are as before them."""
    await small.server.bridge.drained()
    stats = small.server.engine.stats()
    assert (small.server.bridge.running_count, stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0, 0)
    assert [resident.reference for resident in small.server.residency.resident() if resident.leases] == []
    small.server.residency.evict_idle()
    assert small.server.residency.resident_bytes == 0


async def refusal(small: Small, request: pb.GenerateRequest, *, stream: bool) -> tuple[grpc.StatusCode, str, Any, Any]:
    """Code, message, ErrorInfo and RetryInfo (or None) of a call that must fail."""
    try:
        if stream:
            async for _ in small.stub.GenerateStream(request):
                pytest.fail("it answered")
        else:
            await small.stub.Generate(request)
    except grpc.aio.AioRpcError as error:
        status: Any = rpc_status.from_call(error)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        found = [(detail.Unpack(info), detail.Unpack(retry)) for detail in status.details]
        return error.code(), error.details() or "", info, retry if any(second for _, second in found) else None
    pytest.fail("it answered")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_queue_says_so_and_when_to_come_back(
    small: Small, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, schedule = threading.Event(), Scheduler.schedule

    def held(self: Scheduler) -> list[Part]:
        assert go_on.wait(60)
        return schedule(self)

    monkeypatch.setattr(Scheduler, "schedule", held)
    try:
        waiting = [
            asyncio.create_task(small.client.generate("fox", "test/lora", max_new_tokens=4, ignore_eos=True))
            for _ in range(MAX_WAITING)
        ]
        while small.server.bridge.running_count < MAX_WAITING:
            await asyncio.sleep(0.01)
        one_more = pb.GenerateRequest(prompt="fox", adapter_id="test/qalora", stopping=pb.Stopping(max_new_tokens=4))
        code, message, info, retry = await refusal(small, one_more, stream=stream)
        assert small.server.bridge.running_count == MAX_WAITING
        assert {r.reference: r.leases for r in small.server.residency.resident()} == {
            "test/lora": MAX_WAITING,
            "test/qalora": 0,
        }
        with pytest.raises(ExhaustedError) as refused:
            await small.client.generate("fox", max_new_tokens=4)
    finally:
        go_on.set()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (info.reason, info.domain, info.metadata["limit"]) == ("QUEUE_FULL", "weft.dev", str(MAX_WAITING))
    assert f"{MAX_WAITING} requests are waiting" in message
    assert retry is not None
    assert retry.retry_delay.ToNanoseconds() > 0
    assert (refused.value.reason, refused.value.retry_after_s) == ("QUEUE_FULL", 1.0)
    # Those who were in time are served, and so is whoever comes back.
    assert [done.generated_tokens for done in await asyncio.gather(*waiting)] == [4] * MAX_WAITING
    assert (await small.client.generate("fox", max_new_tokens=2, ignore_eos=True)).generated_tokens == 2
    await nothing_is_left(small)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_can_never_fit_the_cache_says_so_and_no_more_than_that_fits(
    small: Small, stream: bool
) -> None:
    room = KV_BLOCKS * BLOCK_TOKENS

    def request(most_tokens: int) -> pb.GenerateRequest:
        # The last new token is never cached.
        return pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[5] * 10),
            adapter_id="test/lora",
            stopping=pb.Stopping(max_new_tokens=most_tokens - 10 + 1, ignore_eos=True),
        )

    code, message, info, retry = await refusal(small, request(room + 1), stream=stream)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info.reason == "KV_MEMORY"
    needed = small.kv_bytes // KV_BLOCKS * (KV_BLOCKS + 1)
    assert dict(info.metadata) == {"needed_bytes": str(needed), "limit_bytes": str(small.kv_bytes)}
    assert f"may reach {room + 1} tokens" in message
    assert f"take {needed} bytes" in message
    assert f"has {small.kv_bytes} for all requests" in message
    # Waiting does not help.
    assert retry is None
    await nothing_is_left(small)
    answer = await small.stub.Generate(request(room))
    assert answer.summary.generated_token_count == room - 10 + 1
    await nothing_is_left(small)
