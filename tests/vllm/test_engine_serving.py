"""`weft serve --engine vllm` as a process of its own, asked by the real client over gRPC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.homes import KINDS, prepare
from tests.tiny_models import AddedBase
from weft_client import InferenceClient
from weft_registry.composition import parse_parts
from weft_registry.errors import PreconditionError, UnavailableError
from weft_registry.home import Home

SERVE = ("--engine", "vllm", "--dtype", "float32", "--kv-memory", "8MiB", "--adapter-memory", "64MiB")


class Served(NamedTuple):
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    said: Path
    """Its standard error."""


@pytest.fixture(scope="module")
def home(tiny_base: Callable[..., AddedBase], tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("served"))
    prepare(home, tiny_base(head_dim=32))
    return home


def start(home: Home, base: str, said: Path, *options: str) -> Served:
    command = [sys.executable, "-m", "weft_client.cli", "serve", "--base", base, "--port", "0", *SERVE, *options]
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    environment.pop("WEFT_REGISTRY", None)
    with said.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready on 127.0.0.1:"):
        process.kill()
        pytest.fail(line + said.read_text())
    return Served(process, line.removeprefix("ready on ").strip(), said)


@pytest.fixture(scope="module")
def base_name(tiny_base: Callable[..., AddedBase]) -> str:
    return tiny_base(head_dim=32).name


@pytest.fixture(scope="module")
def served(home: Home, base_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start(home, base_name, tmp_path_factory.mktemp("said") / "stderr", "--vllm", "max_lora_rank=8")
    yield served
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0


def test_one_mixed_batch_answers_as_each_request_alone_merged_or_not(served: Served) -> None:
    weighted = "test/qalora*-2"
    adapters = ["", *(f"test/{kind}" for kind in KINDS), weighted] * 2
    with InferenceClient(served.address, timeout_s=120) as client, ThreadPoolExecutor(len(adapters)) as pool:

        def ask(adapter: str) -> str:
            worn = list(parse_parts(adapter)) if adapter else []
            parts = [(part.reference, part.weight) for part in worn]
            return client.generate("what is the capital", parts, max_new_tokens=24, ignore_eos=True).text

        alone = [ask(adapter) for adapter in adapters]
        # This prefix is too weak to change a greedy answer to these words.
        assert len(set(alone)) == 4
        assert list(pool.map(ask, adapters)) == alone
        for merged in ("test/qalora", weighted):
            client.merge(merged)
            assert list(pool.map(ask, adapters)) == alone
        client.unmerge()
        assert list(pool.map(ask, adapters)) == alone
        with pytest.raises(PreconditionError, match="changes no weight"):
            client.merge("test/prefix")


def test_the_start_says_what_is_in_force(served: Served) -> None:
    said = served.said.read_text()
    assert "float32 on cpu, vLLM 0." in said
    assert "max_lora_rank=8" in said
    assert "max_num_seqs=32" in said
    assert "qalora adapters: served on pooled inputs" in said
    assert "32 slots for adapters of rank 8" in said


def test_when_vllm_dies_health_turns_and_a_restart_answers(home: Home, base_name: str, tmp_path: Path) -> None:
    served = start(home, base_name, tmp_path / "first")
    try:
        children = psutil.Process(served.process.pid).children(recursive=True)
        with InferenceClient(served.address, timeout_s=60) as client, ThreadPoolExecutor(2) as pool:
            before = client.generate("Oil prices", "test/lora", max_new_tokens=8, ignore_eos=True).text
            stuck = [pool.submit(client.generate, "Oil prices", max_new_tokens=200, ignore_eos=True) for _ in range(2)]
            for child in children:
                if any("spawn_main" in word for word in child.cmdline()):
                    child.kill()
            # A request may have ended before the kill: what matters is that none waits.
            for call in stuck:
                assert isinstance(call.exception(timeout=60), UnavailableError | None)
            with pytest.raises(UnavailableError):
                client.generate("Oil prices", max_new_tokens=1)
        with grpc.insecure_channel(served.address) as channel:
            health, deadline = health_pb2_grpc.HealthStub(channel), time.monotonic() + 30
            while health.Check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(60)
    again = start(home, base_name, tmp_path / "second")
    try:
        with InferenceClient(again.address, timeout_s=60) as client:
            assert client.generate("Oil prices", "test/lora", max_new_tokens=8, ignore_eos=True).text == before
    finally:
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "vllm", "--copies", "always"), "--copies: without effect with --engine vllm"),
        (("--engine", "vllm", "--memory", "2GiB"), "--memory: without effect with --engine vllm"),
        (("--engine", "vllm", "--vllm", "max_num_seq=3"), "no such setting; nearest: max_num_seqs"),
        (("--engine", "torch", "--vllm", "max_num_seqs=3"), "without effect unless --engine is vllm"),
        (("--engine", "cuda"), "this Weft has the engines torch and vllm"),
    ],
)
def test_options_that_nothing_would_heed_are_refused(
    home: Home, base_name: str, options: tuple[str, ...], said: str
) -> None:
    command = [sys.executable, "-m", "weft_client.cli", "serve", "--base", base_name, "--port", "0", *options]
    found = subprocess.run(
        command, env={**os.environ, "WEFT_HOME": str(home.root)}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert said in found.stderr
