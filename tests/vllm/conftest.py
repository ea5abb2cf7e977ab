"""vLLM, where it is installed: everything here is marked `vllm`, and skipped with a reason where it is not."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
_MISSING = "vLLM is not installed in this environment"

# One process, and every core; set before anything imports vLLM.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weft's entry point as an installed Weft declares it: spawned workers look for it on their path."""
    metadata = tmp_path / "path" / "weft-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: weft\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nweft = weft_server.vllm_engine.plugin:register\n"
    )
    monkeypatch.syspath_prepend(str(metadata.parent))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    # A fork would keep the locks of this process's threads.
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder."""
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason=_MISSING))
