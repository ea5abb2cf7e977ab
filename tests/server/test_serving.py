"""`weft serve` as a process of its own, asked by the real client over gRPC."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from benchmarks.subjects import random_adapter
from tests.server.homes import KINDS, prepare
from tests.server.processes import start
from tests.tiny_models import AddedBase
from weft_adapters.kinds import KINDS as ALL_KINDS
from weft_client import AsyncInferenceClient, InferenceClient, RegistryClient
from weft_client.messages import Worn
from weft_client.results import Completion
from weft_registry import errors
from weft_registry.home import Home
from weft_registry.reference import AdapterName


class Served(NamedTuple):
    """A running server."""

    address: str
    home: Home
    process: subprocess.Popen[str]
    base: AddedBase


@pytest.fixture(scope="module")
def served(tiny_base: Callable[..., AddedBase], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base, home = tiny_base(), Home(tmp_path_factory.mktemp("served"))
    prepare(home, base)
    process, address = start(home, base.name, "--dtype", "float32")
    yield Served(address, home, process, base)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.fixture
def client(served: Served) -> Iterator[InferenceClient]:
    with InferenceClient(served.address, timeout_s=60) as client:
        yield client


def test_one_mixed_batch_answers_as_each_request_alone(client: InferenceClient) -> None:
    adapters = ["", *(f"test/{kind}" for kind in KINDS)] * 2

    def ask(adapter: str) -> tuple[str, str]:
        done = client.generate("what is the capital", adapter, max_new_tokens=24, ignore_eos=True)
        return done.text, done.adapter_digest

    alone = [ask(adapter) for adapter in adapters]
    with ThreadPoolExecutor(len(adapters)) as pool:
        assert list(pool.map(ask, adapters)) == alone
    assert len({text for text, _ in alone}) == 4
    assert alone[0][1] == ""


def test_adapters_worn_together_answer_as_their_sum(client: InferenceClient, served: Served) -> None:
    def ask(adapter: Worn) -> Completion:
        return client.generate("what is the capital", adapter, max_new_tokens=24, ignore_eos=True)

    base, lora, qalora = ask(""), ask("test/lora"), ask("test/qalora")
    halves = ask([("test/lora", 0.5), ("test/lora:production", 0.5)])
    assert halves.text == lora.text
    assert halves.part_digests == (lora.adapter_digest,) * 2
    assert halves.adapter_digest not in ("", lora.adapter_digest)
    assert ask(["test/lora", ("test/lora", -1)]).text == base.text
    assert ask(["test/lora"]).adapter_digest == lora.adapter_digest
    both = ask(["test/lora", ("test/qalora", 0.5)])
    assert len({both.text, base.text, lora.text, qalora.text}) == 4
    assert {r.reference: r.kind for r in client.resident().adapters}["test/lora+test/qalora*0.5"] == "composed"
    # Aliases and digests are left out there, as of any adapter.
    counted = {entry.adapter for entry in client.stats().adapter_tokens}
    assert {"test/lora+test/qalora*0.5", "test/lora*0.5+test/lora*0.5", "test/lora"} <= counted
    # Beside others, and by another order of arrival, the same.
    wearers: list[Worn] = ["", ["test/lora", ("test/qalora", 0.5)], "test/prefix", [("test/lora", 0.5)] * 2]
    with ThreadPoolExecutor(len(wearers)) as pool:
        found = list(pool.map(ask, wearers))
    assert [c.text for c in found] == [base.text, both.text, ask("test/prefix").text, lora.text]


BAD_COMPOSITIONS: dict[str, tuple[Worn, type[errors.WeftError], str]] = {
    "prefix in a sum": (
        ["test/lora", "test/prefix"],
        errors.UnsupportedError,
        r"^test/lora\+test/prefix: test/prefix is .*: leave",
    ),
    "prefix first": (
        ["test/prefix", "test/lora"],
        errors.UnsupportedError,
        ": test/prefix is of kind prefix, which is worn alone",
    ),
    "prefix with a weight": ("test/prefix*0.5", errors.UnsupportedError, "test/prefix is of kind prefix, .* no weight"),
    "a part that is not there": (["test/lora", "test/lorra"], errors.NotFoundError, "test/lora"),
    "a weight that is none": ([("test/lora", float("nan"))], errors.InvalidInputError, r"adapters\[0\].weight"),
    "a weight that overflows": ([("test/lora", 1e39), "test/lora"], errors.InvalidInputError, "finite"),
    "too many": (["test/lora"] * 17, errors.InvalidInputError, "at most 16"),
    "no name": (["test/lora", ""], errors.InvalidInputError, r"adapters\[1\].adapter_id: is empty"),
}


@pytest.mark.parametrize("case", BAD_COMPOSITIONS)
def test_what_cannot_be_worn_together_is_refused_and_frees_its_parts(case: str, client: InferenceClient) -> None:
    worn, error, message = BAD_COMPOSITIONS[case]
    with pytest.raises(error, match=message):
        client.generate("fox", worn)
    assert all(resident.lease_count == 0 for resident in client.resident().adapters)


def test_a_stream_spells_the_unary_answer_and_ends_with_the_resolved_digest(
    client: InferenceClient, served: Served
) -> None:
    whole = client.generate("Oil prices", "test/lora@v1", max_new_tokens=12, ignore_eos=True, logprobs=2)
    chunks = list(client.stream("Oil prices", "test/lora:production", max_new_tokens=12, ignore_eos=True))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert [chunk.summary is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    with RegistryClient(served.address) as registry:
        digest = registry.resolve("test/lora").digest
    summary = chunks[-1].summary
    assert summary is not None
    assert summary.adapter_digest == whole.adapter_digest == digest
    assert summary.generated_tokens == 12
    assert summary.finish_reason == "length"
    assert len(whole.logprobs) == 12
    assert all(len(position.top) == 2 for position in whole.logprobs)


def test_text_chat_and_token_ids_are_all_understood(client: InferenceClient) -> None:
    text = client.generate("Oil prices", max_new_tokens=3, ignore_eos=True)
    chat = client.generate(messages=[{"role": "user", "content": "Oil prices"}], max_new_tokens=3, ignore_eos=True)
    ids = client.generate(token_ids=[1, 2, 3], max_new_tokens=3, ignore_eos=True)
    assert chat.input_tokens > text.input_tokens
    assert ids.input_tokens == 3


def test_a_stop_sequence_ends_the_text(client: InferenceClient) -> None:
    free = client.generate("Oil prices", max_new_tokens=20, ignore_eos=True)
    stop = free.text[5:8]
    cut = client.generate("Oil prices", max_new_tokens=20, ignore_eos=True, stop=[stop])
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop_sequence"
    assert cut.stop_sequence == stop


BAD_REQUESTS: dict[str, tuple[dict[str, object], type[errors.WeftError], str]] = {
    "empty prompt": ({"prompt": ""}, errors.InvalidInputError, "prompt: is empty"),
    "negative temperature": (
        {"temperature": -1.0},
        errors.InvalidInputError,
        "sampling.temperature: -1 is not between",
    ),
    "top_p of 0": ({"top_p": 0.0}, errors.InvalidInputError, "sampling.top_p"),
    "negative top_k": ({"top_k": -1}, errors.InvalidInputError, "sampling.top_k"),
    "too many logprobs": ({"logprobs": 21}, errors.InvalidInputError, "logprobs: 21 is not 0 to 20"),
    "empty stop": ({"stop": [""]}, errors.InvalidInputError, r"stop_sequences\[0\]"),
    "min over max": ({"min_new_tokens": 9, "max_new_tokens": 8}, errors.InvalidInputError, "min_new_tokens: 9"),
    "over the context": (
        {"prompt": "fox " * 2000},
        errors.InvalidInputError,
        r"tokens leave no room.*context holds \d+",
    ),
    "answer over the context": ({"max_new_tokens": 100_000}, errors.InvalidInputError, "ask for at most"),
    "token out of range": (
        {"prompt": None, "token_ids": [1, 10_000_000]},
        errors.InvalidInputError,
        "10000000 is not a token of this base",
    ),
    "not a reference": ({"adapter": "No Such/Thing"}, errors.InvalidInputError, "namespace"),
    "unknown adapter": ({"adapter": "test/lorra"}, errors.NotFoundError, "test/lora"),
    "unknown version": ({"adapter": "test/lora:v9"}, errors.NotFoundError, "v9"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_input_names_the_field_and_the_limit(case: str, client: InferenceClient) -> None:
    fields, error, message = BAD_REQUESTS[case]
    with pytest.raises(error, match=message):
        client.generate(**{"prompt": "fox", **fields})  # type: ignore[arg-type]


def test_bad_requests_leave_their_neighbours_alone(client: InferenceClient) -> None:
    expected = client.generate("The quick", "test/qalora", max_new_tokens=30, ignore_eos=True).text

    def ask(index: int) -> str:
        if index % 2:
            return client.generate("The quick", "test/qalora", max_new_tokens=30, ignore_eos=True).text
        fields, error, _ = list(BAD_REQUESTS.values())[index % len(BAD_REQUESTS)]
        with pytest.raises(error):
            client.generate(**{"prompt": "fox", **fields})  # type: ignore[arg-type]
        return expected

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(24))) == {expected}


BOTH = "test/lora*0.5+test/qalora*-1"


def test_merge_and_unmerge_change_nobodys_answer(client: InferenceClient) -> None:
    def answers() -> list[str]:
        return [
            client.generate("Oil prices", adapter, max_new_tokens=16, ignore_eos=True).text
            for adapter in ("", *(f"test/{kind}" for kind in KINDS), [("test/lora", 0.5), ("test/qalora", -1.0)])
        ]

    before = answers()
    for reference, kind in (("test/qalora", "qalora"), ("test/lora", "lora"), (BOTH, "composed")):
        merged = client.merge(reference)
        assert merged.overlay_bytes > 0
        assert [r.kind for r in client.resident().adapters if r.merged] == [kind]
        assert answers() == before
        with pytest.raises(errors.PreconditionError, match="unmerge it first"):
            client.unload(reference)
    client.unmerge()
    assert answers() == before
    with pytest.raises(errors.PreconditionError, match="changes no weight"):
        client.merge("test/prefix")
    with pytest.raises(errors.PreconditionError, match="no adapter is merged"):
        client.unmerge()


def test_a_cancelled_or_late_request_is_freed(client: InferenceClient) -> None:
    client.load("test/lora")
    stream = client.stream("fox", "test/lora", max_new_tokens=200, ignore_eos=True)
    next(stream)
    assert leases(client) == 1
    stream.close()
    wait_until(lambda: leases(client) == 0)
    with pytest.raises(errors.DeadlineError):
        client.generate("fox", "test/lora", max_new_tokens=200, ignore_eos=True, timeout_s=0.02)
    wait_until(lambda: leases(client) == 0)
    assert client.unload("test/lora") > 0


def test_a_time_limit_ends_the_answer_not_the_call(client: InferenceClient) -> None:
    done = client.generate("fox", max_new_tokens=200, ignore_eos=True, time_limit_s=0.05)
    assert done.finish_reason == "time_limit"
    assert done.generated_tokens < 200


def test_health_and_reflection_answer(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel:
        for service in ("", "weft.v1.InferenceService", "weft.v1.RegistryService"):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"weft.v1.InferenceService", "weft.v1.AdapterAdminService", "weft.v1.RegistryService"} <= set(names)


def test_model_info_tells_base_and_kinds(client: InferenceClient, served: Served) -> None:
    info = client.model_info()
    assert info.base_name == served.base.name
    assert set(info.kinds) == set(ALL_KINDS)
    assert {"lora", "qalora"} <= set(info.mergeable_kinds) <= set(ALL_KINDS) - {"prefix", "prompt"}
    assert info.dtype == "float32"


async def test_the_asyncio_client_streams_many_at_once(served: Served) -> None:
    async with AsyncInferenceClient(served.address) as client:

        async def ask(adapter: str) -> str:
            stream = client.stream("The quick", adapter, max_new_tokens=10, ignore_eos=True)
            return "".join([chunk.text async for chunk in stream])

        texts = await asyncio.gather(*(ask(f"test/{kind}") for kind in KINDS * 3))
    assert texts[:3] == texts[3:6] == texts[6:]


def test_a_version_published_while_serving_is_served_and_pinned_by_digest(
    client: InferenceClient, served: Served, tmp_path: Path
) -> None:
    spec = served.base.stored.spec
    with RegistryClient(served.address) as registry:
        digests = []
        for seed in (11, 12):
            directory = tmp_path / str(seed)
            random_adapter("lora", spec, seed, strength=0.3).write(directory, spec, "test/moving")
            digests.append(registry.push(directory, AdapterName("test", "moving")).version.digest)
    first = client.generate("Oil prices", f"test/moving@{digests[0]}", max_new_tokens=8, ignore_eos=True)
    latest = client.generate("Oil prices", "test/moving", max_new_tokens=8, ignore_eos=True)
    assert (first.adapter_digest, latest.adapter_digest) == tuple(digests)
    assert first.text != latest.text


def test_a_corrupted_blob_is_data_loss_and_never_served(
    served: Served, client: InferenceClient, tmp_path: Path
) -> None:
    spec = served.base.stored.spec
    directory = tmp_path / "corrupt"
    random_adapter("lora", spec, 21).write(directory, spec, "test/corrupt")
    with RegistryClient(served.address) as registry:
        version = registry.push(directory, AdapterName("test", "corrupt")).version
    weights = next(f for f in version.manifest.files if f.path.endswith(".safetensors"))
    hexadecimal = weights.sha256.removeprefix("sha256:")
    blob = next(path for path in served.home.registry.rglob(hexadecimal))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    with pytest.raises(errors.CorruptionError):
        client.generate("fox", "test/corrupt")
    assert not any(r.reference == "test/corrupt" for r in client.resident().adapters)


def test_an_adapter_for_another_base_is_refused_with_both_fingerprints(
    served: Served, client: InferenceClient, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    other = tiny_base(seed=5).stored.spec
    random_adapter("lora", other, 1).write(tmp_path / "other", other, "test/other")
    with RegistryClient(served.address) as registry:
        registry.push(tmp_path / "other", AdapterName("test", "other"))
    with pytest.raises(errors.PreconditionError) as caught:
        client.generate("fox", "test/other")
    assert other.fingerprint.weights_sha256 in caught.value.message
    assert served.base.stored.spec.fingerprint.weights_sha256 in caught.value.message


def test_a_second_server_on_the_same_port_says_so(served: Served) -> None:
    port = served.address.rpartition(":")[2]
    command = [sys.executable, "-m", "weft_client.cli", "serve", "--base", served.base.name, "--port", port]
    environment = {**os.environ, "WEFT_HOME": str(served.home.root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "is another server there" in done.stderr
    assert "Traceback" not in done.stderr


def test_stopping_lets_running_requests_finish(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base, home = tiny_base(), Home(tmp_path)
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    process, address = start(home, base.name)
    with InferenceClient(address) as client:
        stream = client.stream("fox", max_new_tokens=100, ignore_eos=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        chunks = list(stream)
    assert chunks[-1].summary is not None
    assert chunks[-1].summary.generated_tokens == 100
    assert process.wait(30) == 0


def leases(client: InferenceClient) -> int:
    return sum(resident.lease_count for resident in client.resident().adapters)


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits for what another process does in its own time; the limit only ends a test that has failed."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to hold")
