"""The command line as a process: what it imports, how it ends, and what it leaves on which stream."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft_registry.base import BaseSpec
from weft_registry.home import Home
from weft_registry.storage import Storage

Start = Callable[..., "subprocess.Popen[str]"]
# Runs a command as `weft` does, then writes to stderr which modules that took.
LISTING = """
import sys
from weft_client.cli.app import app
app(sys.argv[1:], standalone_mode=False)
print("\\n".join(sys.modules), file=sys.stderr)
"""
# Runs a command where nothing of this kind can be imported, as after a bare `pip install weft`.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from weft_client.cli import main
main()
"""
HEAVY = {"torch", "transformers", "peft", "trl", "tokenizers", "safetensors", "numpy", "huggingface_hub", "rich"}


def run(command: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False
    )


@pytest.fixture
def python(home: Home) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs Python code in a process of its own, with the same path as this one."""
    path = os.pathsep.join(p for p in sys.path if p)
    return lambda code, *arguments: run([sys.executable, "-c", code, *map(str, arguments)], PYTHONPATH=path)


@pytest.mark.parametrize("command", [("list", "--json"), ("list",), ("base", "list"), ("version",), ("--help",)])
def test_light_commands_import_nothing_heavy(python: Any, base: BaseSpec, command: tuple[str, ...]) -> None:
    done = python(LISTING, *command)
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.split("\n"))
    assert "weft_client.cli.app" in modules
    assert not {name.partition(".")[0] for name in modules} & HEAVY


def test_a_local_list_imports_neither_grpc_nor_the_servers(python: Any, base: BaseSpec) -> None:
    modules = set(python(LISTING, "list").stderr.split("\n"))
    assert "weft_registry.embedded" in modules
    assert not {name.partition(".")[0] for name in modules} & {"grpc", "google", "weft_server", "weft_adapters"}


def test_the_table_of_a_registry_in_files_loads_no_database_library(python: Any, home: Home) -> None:
    Storage().open_catalog(home.registry).close()
    done = python(LISTING, "list")
    assert "no adapters yet" in done.stderr
    modules = set(done.stderr.split("\n"))
    assert "weft_registry.catalog.quick_listing" in modules
    assert not modules & {"sqlalchemy", "weft_registry.embedded", "weft_registry.api", "weft_registry.manifest"}


def test_the_help_of_all_commands_loads_none_of_what_they_run(python: Any) -> None:
    modules = set(python(LISTING, "--help").stderr.split("\n"))
    assert {"weft_client.cli.listing", "weft_client.cli.upkeep"} < modules
    assert not modules & {"sqlalchemy", "ssl", "weft_registry.api", "weft_registry.admin_api", "weft_registry.kinds"}


def test_the_clients_import_neither_torch_nor_the_layers_that_need_it(python: Any) -> None:
    done = python(
        "import sys; from weft_client import *; import weft_client as w; w.InferenceClient; w.AsyncInferenceClient; "
        "w.RegistryClient; w.AsyncRegistryClient; print('\\n'.join(sys.modules))"
    )
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert "grpc" in modules
    assert not modules & {"torch", "transformers", "weft_server", "weft_adapters", "weft_trainer"}


def test_naming_the_package_imports_no_client(python: Any) -> None:
    done = python("import sys, weft_client; dir(weft_client); print('\\n'.join(sys.modules))")
    assert "grpc" not in done.stdout.split()
    missing = python("import weft_client; weft_client.Missing")
    assert "AttributeError: module 'weft_client' has no attribute 'Missing'" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("serve", "--base", "tiny"), "serve"),
        (("base", "add", "x", "./nothing"), "serve"),
        (("train", "{config}"), "train"),
        (("eval", "-", "{config}", "--base", "tiny"), "train"),
    ],
)
def test_without_its_extra_a_command_says_which_to_install(
    python: Any, base: BaseSpec, tmp_path: Path, arguments: tuple[str, ...], extra: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("base: tiny\n")
    absent = {"torch", "transformers", "tokenizers", "safetensors", "gguf", "yaml", "peft"}
    done = python(WITHOUT.format(absent=absent), *(a.format(config=config) for a in arguments))
    assert done.returncode == 1, done.stderr
    assert f'pip install "weft[{extra}]"' in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_without_any_extra_the_registry_works(python: Any, base: BaseSpec, peft_directory: Any) -> None:
    absent = {"torch", "transformers", "tokenizers", "safetensors", "gguf", "yaml", "peft"}
    code = WITHOUT.format(absent=absent)
    pushed = python(code, "push", peft_directory(), "acme/topics", "--base", "tiny", "--json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(python(code, "list", "--json").stdout)[0]["adapter"] == "acme/topics"


def test_ctrl_c_ends_a_stream_quietly_and_cancels_it(weft_process: Start, server: Any) -> None:
    process = weft_process("generate", "-", "for ever")
    assert server.script.started.wait(60)
    assert process.stdout is not None
    assert process.stdout.read(5) == "tick "
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
    assert server.script.cancelled.wait(20)


def test_a_reader_that_went_away_is_no_traceback(weft_process: Start, server: Any) -> None:
    process = weft_process("generate", "-", "for ever")
    assert process.stdout is not None
    assert process.stdout.read(5) == "tick "
    process.stdout.close()
    server.script.release.set()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_wrong_usage_is_status_2(weft_process: Start) -> None:
    process = weft_process("lst")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert "did you mean: list" in stderr


def test_an_error_is_status_1_and_no_traceback(weft_process: Start) -> None:
    process = weft_process("show", "acme/none")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr


def on_terminal(command: list[str], columns: int) -> str:
    """What a command writes on a terminal of this width, stdout and stderr together."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    path = os.pathsep.join(p for p in sys.path if p)
    environment["PYTHONPATH"] = path
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    output = b""
    while select.select([master], [], [], 60)[0]:
        try:
            data = os.read(master, 65536)
        except OSError:  # Linux says EIO once the other end is closed.
            break
        if not data:
            break
        output += data
    assert process.wait(60) == 0, output
    os.close(master)
    return output.decode()


@pytest.mark.parametrize("columns", [30, 60, 90, 200])
def test_a_table_fits_any_terminal_and_loses_nothing(
    weft: Any, base: BaseSpec, peft_directory: Any, columns: int
) -> None:
    tag = "a-very-long-tag-name-for-a-version"
    weft("push", peft_directory(), "acme/topics", "--base", "tiny", "--tag", tag)
    text = on_terminal([sys.executable, "-m", "weft_client.cli", "list"], columns)
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).splitlines()
    assert any("acme/topics" in line for line in lines)
    if lines[0].startswith("ADAPTER"):
        assert max(len(line.rstrip()) for line in lines) <= columns
        start = lines[0].index("TAGS")
        end = lines[0].index("VERSIONS")
        assert "".join(line[start:end].strip() for line in lines[2:]) == tag
    else:
        # Too narrow for a table: one `title  value` line each.
        assert columns < 90
        assert f"tags       {tag}" in lines


def test_a_transfer_on_a_terminal_shows_a_bar_unless_quiet(
    weft: Any, base: BaseSpec, peft_directory: Any, tmp_path: Path
) -> None:
    weft("push", peft_directory(), "acme/topics", "--base", "tiny")
    command = [sys.executable, "-m", "weft_client.cli", "pull", "acme/topics"]
    assert "pulling acme/topics" in on_terminal([*command, "--to", str(tmp_path / "a")], 100)
    assert "pulling" not in on_terminal([*command, "--to", str(tmp_path / "b"), "--quiet"], 100)
