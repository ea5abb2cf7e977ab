"""Which engine a server runs is decided before any of them is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from weft_registry.errors import UnsupportedError
from weft_server.engines import FACTORIES, engine_builder
from weft_server.vllm_engine.kinds import served


def test_the_server_imports_no_engine_before_it_knows_which() -> None:
    asked = (
        "import sys, weft_server.serving; engines = ('weft_server.torch_engine', 'weft_server.vllm_engine', 'vllm');"
        "print([module for module in sys.modules if module.startswith(engines)])"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_engine_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    assert set(FACTORIES) == {"torch", "vllm"}
    with pytest.raises(UnsupportedError, match="--engine tensorrt: this Weft has the engines torch and vllm"):
        engine_builder("tensorrt")


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_a_kind_that_scales_outputs_is_refused_on_vllm_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"the kind '{kind}'.*--engine torch"):
        served(kind)
