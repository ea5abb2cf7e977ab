"""The command line from import to completion: a tiny random model, a real server, nothing scripted."""

import json
import re
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from tests.tiny_models import make_model_directory
from weft_registry.home import Home

Weft = Callable[..., Result]


@pytest.fixture
def served(
    weft: Weft,
    weft_process: Callable[..., "subprocess.Popen[str]"],
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Generator["subprocess.Popen[str]"]:
    """A server of the base "small", whose address is in WEFT_SERVER; `weft` started it and stops it."""
    added = weft("base", "add", "small", make_model_directory(tmp_path / "model", "llama"), "--json", "--quiet")
    assert json.loads(added.stdout)["name"] == "small"
    process = weft_process("serve", "--base", "small", "--port", "0", "--dtype", "float32", "--threads", "1")
    assert process.stdout is not None
    line = process.stdout.readline()
    ready = re.fullmatch(r"ready on (127\.0\.0\.1:\d+)\n", line)
    if ready is None:
        process.kill()
        pytest.fail(f"{line!r} {process.communicate()[1]}")
    monkeypatch.setenv("WEFT_SERVER", ready[1])
    yield process
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr


def test_an_adapter_goes_from_directory_to_completion(
    weft: Weft, served: "subprocess.Popen[str]", tmp_path: Path, write_safetensors: Any
) -> None:
    (listed,) = json.loads(weft("base", "list", "--json").stdout)
    random = np.random.default_rng(0)
    tensors = {}
    for module, (n_out, n_in) in listed["linears"].items():
        if module.endswith("v_proj"):
            tensors[f"base_model.model.{module}.lora_A.weight"] = random.standard_normal((4, n_in))
            tensors[f"base_model.model.{module}.lora_B.weight"] = random.standard_normal((n_out, 4))
    directory = tmp_path / "peft"
    directory.mkdir()
    write_safetensors(directory / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": ["v_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))

    pushed = json.loads(weft("push", directory, "acme/v", "--base", "small", "--tag", "v1", "--json").stdout)
    options = ("--max-new-tokens", "8", "--ignore-eos", "--json")
    plain = json.loads(weft("generate", "-", "hello there", *options).stdout)
    adapted = json.loads(weft("generate", "acme/v:v1", "hello there", *options).stdout)
    assert (plain["generated_tokens"], adapted["generated_tokens"]) == (8, 8)
    assert (plain["adapter_digest"], adapted["adapter_digest"]) == ("", pushed["digest"])
    assert plain["token_ids"] != adapted["token_ids"]

    (resident,) = json.loads(weft("ps", "--json").stdout)["adapters"]
    assert (resident["digest"], resident["kind"], resident["requests_served"]) == (pushed["digest"], "lora", 1)
    assert json.loads(weft("merge", "acme/v:v1", "--json").stdout)["adapter_digest"] == pushed["digest"]
    assert json.loads(weft("generate", "acme/v", "hello there", *options).stdout)["token_ids"] == adapted["token_ids"]
    assert json.loads(weft("generate", "-", "hello there", *options).stdout) == plain
    weft("unmerge")
    weft("unload", "acme/v:v1")
    assert json.loads(weft("ps", "--json").stdout)["adapters"] == []
    assert "acme/v" in weft("generate", "acme/w", "x", status=1).stderr
    assert "prompt" in weft("generate", "-", "", status=1).stderr
