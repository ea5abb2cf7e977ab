"""Both inference clients against a scripted server over real gRPC: one contract, for sync and asyncio alike."""

import asyncio
import gc
import inspect
import threading
from collections.abc import Generator
from contextlib import aclosing
from typing import Any

import pytest

from weft_client import AsyncInferenceClient, InferenceClient
from weft_client.results import Chunk, Completion
from weft_registry.errors import (
    DeadlineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    Violation,
)

DIGEST = "sha256:" + "ab" * 32


class SyncFace:
    """The synchronous client, as it is."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.client = InferenceClient(*arguments, **keywords)

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self.client, name)(*arguments, **keywords)

    def chunks(self, *arguments: Any, most: int | None = None, **keywords: Any) -> list[Chunk]:
        found = []
        stream = self.client.stream(*arguments, **keywords)
        for chunk in stream:
            found.append(chunk)
            if len(found) == most:
                break
        stream.close()
        return found

    def close(self) -> None:
        self.client.close()


class AsyncFace:
    """The asyncio client, in an event loop of its own thread."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.client = self._run(self._open(*arguments, **keywords))

    async def _open(self, *arguments: Any, **keywords: Any) -> AsyncInferenceClient:
        return AsyncInferenceClient(*arguments, **keywords)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        return self._run(getattr(self.client, name)(*arguments, **keywords))

    def chunks(self, *arguments: Any, most: int | None = None, **keywords: Any) -> list[Chunk]:
        async def collect() -> list[Chunk]:
            found = []
            async with aclosing(self.client.stream(*arguments, **keywords)) as stream:
                async for chunk in stream:
                    found.append(chunk)
                    if len(found) == most:
                        break
            return found

        found: list[Chunk] = self._run(collect())
        return found

    def close(self) -> None:
        self._run(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=[SyncFace, AsyncFace], ids=["sync", "asyncio"])
def face(request: pytest.FixtureRequest, server: Any) -> Generator[Any]:
    """A client of the scripted server."""
    opened = request.param(server.target)
    yield opened
    opened.close()


def test_generate_answers_text_tokens_counts_and_digest(face: Any, server: Any) -> None:
    completion = face.call("generate", "The", "acme/topics:v1", max_new_tokens=4, stop="END", logprobs=2)
    assert (completion.text, completion.token_ids) == ("Red fox \x1b[31mruns.", (10, 11, 12, 13))
    assert (completion.finish_reason, completion.adapter_digest) == ("eos_token", DIGEST)
    assert (completion.input_tokens, completion.generated_tokens, completion.cached_tokens) == (5, 4, 2)
    assert [len(position.top) for position in completion.logprobs] == [2, 2, 2, 2]
    (request,) = server.script.requests
    assert (request.adapter_id, request.prompt, request.stopping.max_new_tokens) == ("acme/topics:v1", "The", 4)


def test_without_an_adapter_the_base_answers(face: Any, server: Any) -> None:
    assert face.call("generate", "The").adapter_digest == ""
    assert server.script.requests[0].adapter_id == ""


def test_chat_and_token_ids_go_as_what_they_are(face: Any, server: Any) -> None:
    face.call("generate", messages=[{"role": "user", "content": "Hi"}])
    face.call("generate", token_ids=[1, 2, 3])
    assert [request.WhichOneof("input") for request in server.script.requests] == ["messages", "token_ids"]


def test_a_stream_spells_what_generate_answers(face: Any) -> None:
    chunks = face.chunks("The", "acme/topics")
    assert [chunk.text for chunk in chunks] == ["Red", " fox", " \x1b[31mruns", ".", ""]
    assert [chunk.summary is not None for chunk in chunks] == [False, False, False, False, True]
    assert Completion.from_chunks(chunks) == face.call("generate", "The", "acme/topics")


def test_closing_a_stream_cancels_it_at_the_server(face: Any, server: Any) -> None:
    (chunk,) = face.chunks("for ever", most=1)
    assert chunk.text == "tick "
    assert server.script.cancelled.wait(20)


def test_a_deadline_ends_the_call_and_frees_the_request(face: Any, server: Any) -> None:
    with pytest.raises(DeadlineError, match=r"deadline") as caught:
        face.chunks("for ever", timeout_s=0.3)
    assert server.target in caught.value.message
    assert server.script.cancelled.wait(20)


def test_a_clients_deadline_holds_unless_a_call_has_its_own(server: Any) -> None:
    with InferenceClient(server.target, timeout_s=50) as client:
        client.generate("x")
        client.generate("x", timeout_s=500)
    first, second = server.script.time_left_s
    assert 40 < first < 60  # gRPC rounds what travels
    assert 400 < second < 600


def test_without_a_deadline_the_server_sees_none(face: Any, server: Any) -> None:
    face.call("generate", "x")
    assert server.script.time_left_s == [None]


def test_metadata_of_the_client_and_of_the_call_arrive(server: Any) -> None:
    with InferenceClient(server.target, metadata={"Authorization": "Bearer a", "x-correlation-id": "1"}) as client:
        client.generate("x", metadata={"x-correlation-id": "2", "traceparent": "t"})
        list(client.stream("x"))
    first, second = server.script.metadata
    assert (first["authorization"], first["x-correlation-id"], first["traceparent"]) == ("Bearer a", "2", "t")
    assert (second["authorization"], second["x-correlation-id"]) == ("Bearer a", "1")


@pytest.mark.parametrize("call", ["generate", "stream"])
def test_errors_arrive_as_what_the_server_raised(face: Any, call: str) -> None:
    def run(*arguments: Any) -> Any:
        return face.call("generate", *arguments) if call == "generate" else face.chunks(*arguments)

    with pytest.raises(NotFoundError, match="nearest: acme/gold") as missing:
        run("x", "acme/gone")
    assert (missing.value.reason, missing.value.metadata) == ("ADAPTER_NOT_FOUND", {"nearest": "acme/gold"})
    with pytest.raises(InvalidInputError, match="two fields") as refused:
        run("refuse")
    assert refused.value.violations == (Violation("sampling.top_k", "at most 7"), Violation("stopping", "too many"))
    with pytest.raises(ExhaustedError) as full:
        run("full")
    assert full.value.retry_after_s == 1.5


def test_half_an_answer_is_an_error(face: Any) -> None:
    with pytest.raises(UnavailableError, match="before the end"):
        face.chunks("half")


def test_a_bad_option_is_refused_before_anything_is_sent(face: Any, server: Any) -> None:
    with pytest.raises(InvalidInputError, match="exactly one"):
        face.call("generate")
    with pytest.raises(InvalidInputError, match=r"sampling\.seed"):
        face.chunks("x", seed=-1)
    assert server.script.requests == []


def test_model_info_has_the_base_and_the_kinds(face: Any) -> None:
    info = face.call("model_info")
    assert (info.base_name, info.base, info.kinds) == ("tiny", {"id": "acme/tiny"}, ("lora", "qalora"))


def test_adapters_are_loaded_listed_and_unloaded(face: Any) -> None:
    residency = face.call("resident")
    assert (residency.resident_bytes, residency.overlay_bytes) == (3 << 20, 5 << 20)
    (adapter,) = residency.adapters
    assert (adapter.digest, adapter.lease_count, adapter.requests_served, adapter.idle_s) == (DIGEST, 2, 17, 2.5)
    assert face.call("load", "acme/x").reference == "acme/x"
    assert face.call("unload", "acme/x") == 3 << 20


def test_merge_and_unmerge_tell_what_they_did(face: Any) -> None:
    merged = face.call("merge", "acme/x")
    assert (merged.adapter_digest, merged.overlay_bytes) == (DIGEST, 5 << 20)
    assert (merged.build_s, merged.switch_s) == pytest.approx((0.04, 8e-5))
    assert face.call("resident").adapters[0].merged
    assert face.call("unmerge").adapter_digest == DIGEST
    with pytest.raises(PreconditionError, match="nothing is merged"):
        face.call("unmerge")


@pytest.mark.parametrize("make", [SyncFace, AsyncFace])
def test_a_server_that_is_not_there_is_named_with_the_way_out(make: Any) -> None:
    # Port 1 is privileged and nothing of ours: the connection is refused at once.
    face = make("127.0.0.1:1")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1.*weft serve"):
        face.call("generate", "x")
    face.close()


def test_a_dropped_stream_cancels_too(server: Any) -> None:
    with InferenceClient(server.target) as client:
        stream = client.stream("for ever")
        next(stream)
        del stream
        gc.collect()
        assert server.script.cancelled.wait(20)


def test_a_stream_nobody_reads_makes_no_call(server: Any) -> None:
    with InferenceClient(server.target) as client:
        client.stream("x").close()
        client.generate("y")
    assert [request.prompt for request in server.script.requests] == ["y"]


async def test_cancelling_the_task_cancels_the_request(server: Any) -> None:
    async with AsyncInferenceClient(server.target) as client:
        task = asyncio.create_task(client.generate("for ever"))
        assert await asyncio.to_thread(server.script.started.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.script.cancelled.wait, 20)


async def test_many_asyncio_requests_share_a_channel(server: Any) -> None:
    async with AsyncInferenceClient(server.target) as client:
        answers = await asyncio.gather(*(client.generate(f"p{i}", "acme/a" if i % 2 else "") for i in range(24)))
    assert [bool(answer.adapter_digest) for answer in answers] == [bool(i % 2) for i in range(24)]


def test_the_environment_names_the_server(server: Any) -> None:
    with InferenceClient() as client:
        assert client.target == server.target
        client.generate("x")


def test_both_clients_offer_the_same(home: Any) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(m).parameters) for name, m in methods if not name.startswith("_")}

    assert public(InferenceClient) == public(AsyncInferenceClient)
