"""A stock `vllm serve` that pulls adapters from a Weft registry: a real process, asked over plain HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.subjects import random_adapter
from tests.server.registries import spoil
from weft_adapters.base import add_base
from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

REPOSITORY = Path(__file__).resolve().parents[2]
# Heads of 32 for vLLM's CPU attention, and an own head: a tied one makes so small a model repeat its last token.
SHAPE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "tie_word_embeddings": False}
PROMPT = [17, 200, 45, 333, 90, 12, 404]
LENGTH = 8


class Lab(NamedTuple):
    """A running `vllm serve`, and the registry that it pulls from."""

    url: str
    model: Path
    registry: EmbeddedRegistry
    root: Path
    bases: dict[str, Any]

    def publish(self, name: str, seed: int, *, kind: str = "lora", base: str = "served", **labels: Any) -> Version:
        """Pushes a random adapter."""
        directory = self.root / f"{name}-{seed}-{kind}-{base}"
        random_adapter(kind, self.bases[base], seed, strength=0.2).write(directory, self.bases[base], f"acme/{name}")
        return push(self.registry, directory, AdapterName("acme", name), **labels).version

    def complete(self, model: str) -> tuple[int, dict[str, Any]]:
        """Asks for a completion; the status and the answer."""
        body = {
            "model": model,
            "prompt": PROMPT,
            "max_tokens": LENGTH,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def tokens(self, model: str) -> list[int]:
        """The tokens of a completion that succeeds."""
        status, answer = self.complete(model)
        assert status == 200, answer
        return list(answer["choices"][0]["token_ids"])

    def refusal(self, model: str, status: int) -> str:
        """The message of one that does not."""
        found, answer = self.complete(model)
        assert found == status, answer
        return str(answer["error"]["message"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_source: Callable[..., Path]) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("resolver")
    home, model = Home(root / "home"), tiny_source("llama", **SHAPE)
    bases = {
        name: add_base(home, name, str(source), report=lambda _line: None)
        for name, source in {"served": model, "other": tiny_source("llama", **SHAPE, seed=1, rms_norm_eps=1e-4)}.items()
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = root / "log"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(plugin_metadata(root / "site")), *filter(None, sys.path)]),
        "WEFT_REGISTRY": str(home.root),
        "WEFT_VLLM_CACHE": str(root / "cache"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = "--dtype float32 --enforce-eager --enable-lora --max-loras 8 --max-lora-rank 8 --max-model-len 128"
    # What `vllm serve` starts: the command itself looks for a distribution called vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options.split()]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=root,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield Lab(url, model, EmbeddedRegistry(home), root, bases)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def plugin_metadata(site: Path) -> Path:
    """A directory that says what an installed Weft says to vLLM: the tests may run without it being installed."""
    points = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    info = site / "weft-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weft\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-5000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-5000:])


def expected(lab: Lab, directory: str | None) -> list[int]:
    """Greedy tokens by transformers, through the adapter in `directory` by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(lab.model, dtype=torch.float32)
    if directory is not None:
        model = PeftModel.from_pretrained(model, str(lab.root / directory))
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in range(LENGTH):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


def test_versions_are_served_by_tag_and_digest_as_peft_computes_them(lab: Lab) -> None:
    first = lab.publish("topics", 1, tags=["v1"])
    lab.publish("topics", 2, tags=["v2"])
    base, one, two = (expected(lab, name) for name in (None, "topics-1-lora-served", "topics-2-lora-served"))
    assert len({tuple(base), tuple(one), tuple(two)}) == 3
    assert lab.tokens("acme/topics@v1") == one
    assert lab.tokens("acme/topics:v2") == two
    assert lab.tokens(f"acme/topics@{first.digest}") == one
    assert lab.tokens(f"acme/topics:v1@{first.digest}") == one
    # Again, now from vLLM's own table; and what the base answers is its own still.
    assert lab.tokens("acme/topics@v1") == one
    with urllib.request.urlopen(f"{lab.url}/v1/models", timeout=30) as response:
        models = {model["id"]: model["root"] for model in json.load(response)["data"]}
    assert Path(models["acme/topics@v1"]).name == first.digest.removeprefix("sha256:")
    served = next(name for name in models if not name.startswith("acme/"))
    assert lab.tokens(served) == base


def test_an_unknown_name_is_not_found(lab: Lab) -> None:
    lab.publish("known", 3, tags=["v1"])
    for name in ("acme/absent", "acme/absent@v1", "acme/known@v9", f"acme/known@sha256:{'0' * 64}", "nonsense!"):
        assert name in lab.refusal(name, 404)


def test_a_name_that_moves_is_refused_with_the_one_that_does_not(lab: Lab) -> None:
    version = lab.publish("moving", 4, tags=["v1"], aliases=["production"])
    for name in ("acme/moving", "acme/moving:latest", "acme/moving:production"):
        message = lab.refusal(name, 400)
        assert "acme/moving@v1" in message
        assert version.digest in message
    # Asked for by what it names, it is served.
    lab.tokens("acme/moving@v1")


def test_what_cannot_be_served_is_refused_with_the_reason(lab: Lab) -> None:
    lab.publish("quantized", 5, kind="qalora", tags=["v1"])
    assert "weft export" in lab.refusal("acme/quantized@v1", 400)
    lab.publish("virtual", 6, kind="prefix", tags=["v1"])
    assert "'prefix'" in lab.refusal("acme/virtual@v1", 400)
    lab.publish("elsewhere", 7, base="other", tags=["v1"])
    assert "config_sha256" in lab.refusal("acme/elsewhere@v1", 400)


def test_a_damaged_blob_is_refused_until_it_is_whole(lab: Lab) -> None:
    version = lab.publish("damaged", 8, tags=["v1"])
    blob, good = spoil(lab.root / "home", version)
    assert "digest" in lab.refusal("acme/damaged@v1", 500)
    blob.write_bytes(good)
    assert lab.tokens("acme/damaged@v1") == expected(lab, "damaged-8-lora-served")
