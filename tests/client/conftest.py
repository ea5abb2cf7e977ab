"""A home with one base model's dimensions, artifacts with random weights, and servers: a real registry, and an
inference server that answers from a script so that no test needs a model.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from grpc_status.rpc_status import to_status

from weft.v1 import inference_pb2 as pb
from weft.v1 import inference_pb2_grpc as services
from weft_client.cli.app import app
from weft_registry.base import BaseFingerprint, BaseSpec, QuantSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    Violation,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.serve.chunks import add_registry_service
from weft_registry.serve.service import RegistryServicer
from weft_registry.wire.status import ErrorInterceptor, to_rpc_status

HIDDEN, GROUP, RANK = 64, 32, 4
MODULES = tuple(f"model.layers.{layer}.self_attn.{leaf}" for layer in range(2) for leaf in ("q_proj", "v_proj"))
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty WEFT_HOME, and an environment that names no server."""
    root = tmp_path / "home"
    monkeypatch.setenv("WEFT_HOME", str(root))
    for variable in ("WEFT_REGISTRY", "WEFT_SERVER"):
        monkeypatch.delenv(variable, raising=False)
    return Home(root)


@pytest.fixture
def base(home: Home) -> BaseSpec:
    """A base called "tiny": its dimensions only, which is all that a registry looks at."""
    quant = QuantSpec("groupwise-affine", 4, GROUP, False, "float", "sha256:" + "11" * 32)
    fingerprint = BaseFingerprint(
        "acme/tiny", "main", "sha256:" + "22" * 32, "sha256:" + "33" * 32, "LlamaForCausalLM", quant
    )
    spec = BaseSpec(
        fingerprint=fingerprint,
        hidden_size=HIDDEN,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=256,
        context_length=128,
        linears=dict.fromkeys(MODULES, (HIDDEN, HIDDEN)),
    )
    directory = home.bases / "tiny"
    directory.mkdir(parents=True)
    (directory / "base.json").write_text(json.dumps(spec.as_json()))
    return spec


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file of float32 tensors."""
    header, blobs, offset = {}, [], 0
    for name, tensor in tensors.items():
        data = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        blobs.append(data)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(blobs))


@pytest.fixture(name="write_safetensors")
def write_safetensors_fixture() -> Callable[[Path, dict[str, np.ndarray]], None]:
    """`write_safetensors`, for tests: they cannot import this file."""
    return write_safetensors


@pytest.fixture
def peft_directory(tmp_path: Path) -> Callable[..., Path]:
    """Makes plain PEFT directories: no manifest. `seed` tells one from another."""

    def make(seed: int = 0, *, qalora: bool = False, name: str = "adapter", **config: Any) -> Path:
        directory = tmp_path / f"{name}-{seed}"
        directory.mkdir()
        random = np.random.default_rng(seed)
        inputs = HIDDEN // GROUP if qalora else HIDDEN
        tensors: dict[str, np.ndarray] = {}
        for module in MODULES:
            tensors[f"base_model.model.{module}.lora_A.weight"] = random.standard_normal((RANK, inputs))
            tensors[f"base_model.model.{module}.lora_B.weight"] = random.standard_normal((HIDDEN, RANK))
        write_safetensors(directory / "adapter_model.safetensors", tensors)
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "acme/tiny",
            "r": RANK,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj"],
            **({"use_qalora": True, "qalora_group_size": GROUP} if qalora else {}),
            **config,
        }
        (directory / "adapter_config.json").write_text(json.dumps(settings))
        return directory

    return make


@pytest.fixture
def weft(home: Home) -> Callable[..., Result]:
    """Runs one command in this process."""

    def run(*arguments: str | Path, status: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == status, (result.exit_code, result.output, result.exception)
        return result

    return run


@pytest.fixture
def weft_process(home: Home) -> Callable[..., subprocess.Popen[str]]:
    """Starts one command in a process of its own; stdout and stderr are pipes."""
    root = Path(__file__).parents[2]
    paths = [str(root / part) for part in ("protos", "registry", "client", "adapters", "trainer", "server")]

    def start(*arguments: str | Path, python: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, *python, "-m", "weft_client.cli", *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    return start


def refusal(error: WeftError) -> Any:
    """What a server aborts a call with."""
    return to_status(to_rpc_status(error))


@dataclass
class Scripted(services.InferenceServiceServicer, services.AdapterAdminServiceServicer):
    """Answers from a script, by what the prompt says, and remembers what it was asked."""

    requests: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    time_left_s: list[float | None] = field(default_factory=list)
    merged: str = ""
    ever_merged: bool = False
    stats: list[pb.GetStatsResponse] = field(default_factory=list)
    """What GetStats answers, one after another."""
    started: threading.Event = field(default_factory=threading.Event)
    """Set when a request that never ends has sent its first chunk."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when such a request was cancelled."""
    release: threading.Event = field(default_factory=threading.Event)
    """Set by a test that wants such a request to go on."""

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> pb.GenerateResponse:
        chunks = list(self.GenerateStream(request, context))
        return pb.GenerateResponse(
            text="".join(chunk.text for chunk in chunks),
            token_ids=[token for chunk in chunks for token in chunk.token_ids],
            logprobs=[position for chunk in chunks for position in chunk.logprobs],
            summary=chunks[-1].summary,
        )

    def GenerateStream(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateStreamResponse]:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        remaining = context.time_remaining()
        self.time_left_s.append(remaining if remaining is not None and remaining < 1e6 else None)
        if request.adapter_id == "acme/gone":
            context.abort_with_status(
                refusal(
                    NotFoundError(
                        "no adapter acme/gone; nearest: acme/gold",
                        reason="ADAPTER_NOT_FOUND",
                        metadata={"nearest": "acme/gold"},
                    )
                )
            )
        if request.prompt == "refuse":
            violations = [Violation("sampling.top_k", "at most 7"), Violation("stopping", "too many")]
            context.abort_with_status(refusal(InvalidInputError("two fields are refused", violations=violations)))
        if request.prompt == "full":
            context.abort_with_status(refusal(ExhaustedError("the queue is full", retry_after_s=1.5)))
        if request.prompt == "for ever":
            context.add_callback(self.cancelled.set)
            yield pb.GenerateStreamResponse(text="tick ", token_ids=[1])
            self.started.set()
            # Ends when the call does; the limit only keeps a failing test from hanging.
            for _ in range(600):
                if self.cancelled.wait(0.05):
                    break
                if self.release.is_set():
                    yield pb.GenerateStreamResponse(text="tock ", token_ids=[2])
            return
        words = ["Red", " fox", " \x1b[31mruns", "."]
        if request.prompt == "half":
            yield pb.GenerateStreamResponse(text="Red", token_ids=[10])
            return
        for index, word in enumerate(words):
            logprobs = []
            if request.HasField("logprobs"):
                chosen = pb.TokenLogprob(token_id=10 + index, text=word, logprob=-0.5)
                top = [pb.TokenLogprob(token_id=50 + i, text="x", logprob=-1.0 - i) for i in range(request.logprobs)]
                logprobs = [pb.PositionLogprobs(chosen=chosen, top=top)]
            yield pb.GenerateStreamResponse(text=word, token_ids=[10 + index], logprobs=logprobs)
        yield pb.GenerateStreamResponse(
            summary=pb.GenerateSummary(
                finish_reason=pb.FINISH_REASON_EOS_TOKEN,
                input_token_count=5,
                generated_token_count=4,
                cached_token_count=2,
                adapter_digest=DIGEST if request.adapter_id else "",
            )
        )

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(
            base_name="tiny", base_json=b'{"id":"acme/tiny"}', context_length=128, kinds=["lora", "qalora"]
        )

    def _resident(self, reference: str) -> pb.ResidentAdapter:
        return pb.ResidentAdapter(
            reference=reference,
            digest=DIGEST,
            kind="lora",
            resident_bytes=3 << 20,
            lease_count=2,
            merged=bool(self.merged),
            hot=self.ever_merged,
            requests_served=17,
            tier=pb.ADAPTER_TIER_HOST,
            generated_tokens=30,
            idle=Duration(seconds=2, nanos=500_000_000),
        )

    def ListResident(self, request: pb.ListResidentRequest, context: grpc.ServicerContext) -> pb.ListResidentResponse:
        bad = pb.ResidentAdapter(
            reference="acme/bad",
            digest=DIGEST,
            kind="lora",
            tier=pb.ADAPTER_TIER_DISK,
            quarantined="since 2026-01-31T12:00:00Z: numbers that are not finite",
            reload_problem="acme/bad:live moved, and cannot be loaded",
        )
        return pb.ListResidentResponse(
            adapters=[self._resident("acme/topics:production"), *([bad] if request.include_disk else [])],
            resident_bytes=3 << 20,
            limit_bytes=1 << 30,
            overlay_bytes=5 << 20,
            overlay_limit_bytes=1 << 30,
            disk_bytes=7 << 20,
            disk_limit_bytes=10 << 30,
            generated_tokens=40,
        )

    def GetStats(self, request: pb.GetStatsRequest, context: grpc.ServicerContext) -> pb.GetStatsResponse:
        return self.stats.pop(0)

    def Load(self, request: pb.LoadRequest, context: grpc.ServicerContext) -> pb.LoadResponse:
        return pb.LoadResponse(adapter=self._resident(request.reference))

    def Unload(self, request: pb.UnloadRequest, context: grpc.ServicerContext) -> pb.UnloadResponse:
        return pb.UnloadResponse(freed_bytes=3 << 20)

    def Merge(self, request: pb.MergeRequest, context: grpc.ServicerContext) -> pb.MergeResponse:
        hot, self.merged, self.ever_merged = self.ever_merged, request.reference, True
        return pb.MergeResponse(
            adapter_digest=DIGEST,
            overlay_bytes=5 << 20,
            build_time=Duration(nanos=0 if hot else 40_000_000),
            switch_time=Duration(nanos=80_000),
            hot=hot,
            switch_steps=1,
        )

    def Unmerge(self, request: pb.UnmergeRequest, context: grpc.ServicerContext) -> pb.UnmergeResponse:
        if not self.merged:
            context.abort_with_status(refusal(PreconditionError("nothing is merged", reason="NOT_MERGED")))
        self.merged = ""
        return pb.UnmergeResponse(adapter_digest=DIGEST, switch_time=Duration(nanos=90_000))


@dataclass(frozen=True)
class Running:
    """A scripted server and where it is."""

    target: str
    script: Scripted


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, home: Home) -> Generator[Running]:
    """A gRPC server on a free port, which WEFT_SERVER names."""
    script = Scripted()
    grpc_server = grpc.server(ThreadPoolExecutor(8))
    services.add_InferenceServiceServicer_to_server(script, grpc_server)
    services.add_AdapterAdminServiceServicer_to_server(script, grpc_server)
    target = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
    grpc_server.start()
    monkeypatch.setenv("WEFT_SERVER", target)
    yield Running(target, script)
    script.cancelled.set()
    grpc_server.stop(None).wait()


@pytest.fixture
def registry_server(tmp_path: Path, base: BaseSpec) -> Generator[str]:
    """A registry server, as `weft serve` has it, on a free port and with a home of its own. Yields HOST:PORT."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    registry = EmbeddedRegistry(Home(tmp_path / "remote-home"))

    async def start() -> tuple[grpc.aio.Server, int]:
        grpc_server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        add_registry_service(RegistryServicer(registry), grpc_server)
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        await grpc_server.start()
        return grpc_server, port

    grpc_server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(grpc_server.stop(None), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    registry.close()
