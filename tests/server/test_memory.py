"""Where memory goes: the arithmetic of the budget, and a server that keeps to it."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.server.homes import KINDS, prepare
from tests.server.processes import start
from tests.tiny_models import AddedBase
from weft_client import InferenceClient
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_server.machine import memory_plan, resident_bytes
from weft_server.memory_plan import (
    ADAPTER_SHARE,
    KV_SHARE,
    OVERLAY_SHARE,
    STACK_FACTOR,
    MemoryPlan,
    Needs,
    NotEnoughMemoryError,
    plan_memory,
)
from weft_server.options import DEFAULT_ADAPTER_BYTES, DEFAULT_KV_BYTES, DEFAULT_OVERLAY_BYTES, MIB, ServeOptions

NEEDS = Needs(
    process_bytes=300 * MIB,
    base_bytes=100 * MIB,
    copy_bytes=200 * MIB,
    file_bytes=90 * MIB,
    step_bytes=50 * MIB,
    token_bytes=1024,
    context_length=8192,
    stack_factor=STACK_FACTOR,
)


def options(**given: int) -> ServeOptions:
    return ServeOptions("base", **given)


def test_without_a_budget_the_defaults_hold() -> None:
    plan = plan_memory(options(kv_bytes=5 * MIB), NEEDS, copies=False)
    assert (plan.kv_bytes, plan.adapter_bytes) == (5 * MIB, DEFAULT_ADAPTER_BYTES)
    assert plan_memory(options(), NEEDS, copies=False).kv_bytes == DEFAULT_KV_BYTES
    assert plan_memory(options(), NEEDS, copies=False).overlay_bytes == DEFAULT_OVERLAY_BYTES


@pytest.mark.parametrize("budget", [700, 800, 1024, 4096, 100_000])
@pytest.mark.parametrize("copies", [True, False, None])
@pytest.mark.parametrize("given", [{}, {"kv_bytes": 64 * MIB}, {"adapter_bytes": 10 * MIB, "overlay_bytes": 0}])
def test_all_parts_together_never_exceed_the_budget(budget: int, copies: bool | None, given: dict[str, int]) -> None:
    settings = options(memory_bytes=budget * MIB, **given)
    least = _least(copies=copies, **given).total_bytes
    if least > budget * MIB:
        with pytest.raises(NotEnoughMemoryError):
            plan_memory(settings, NEEDS, copies=copies)
        return
    plan = plan_memory(settings, NEEDS, copies=copies)
    assert plan.total_bytes <= budget * MIB
    assert plan.kv_bytes >= NEEDS.token_bytes * NEEDS.context_length
    for name, value in given.items():
        assert getattr(plan, name) == value
    # What is shared out is shared out to the last byte or so.
    if not given:
        assert plan.total_bytes > budget * MIB - 16


def test_the_shares_are_the_documented_ones() -> None:
    small, large = (plan_memory(options(memory_bytes=n * MIB), NEEDS, copies=False) for n in (2048, 3048))
    assert large.kv_bytes - small.kv_bytes == pytest.approx(KV_SHARE * 1000 * MIB, rel=1e-6)
    assert large.overlay_bytes - small.overlay_bytes == pytest.approx(OVERLAY_SHARE * 1000 * MIB, rel=1e-6)
    # Once for the adapters themselves, twice for their copies in a batch.
    assert 3 * (large.adapter_bytes - small.adapter_bytes) == pytest.approx(ADAPTER_SHARE * 1000 * MIB, rel=1e-6)


def test_copies_are_made_where_half_of_what_is_left_holds_them() -> None:
    least = plan_memory(options(memory_bytes=1 << 40), NEEDS, copies=False).total_bytes
    assert least == pytest.approx(1 << 40)
    fixed = sum(part.size_bytes for part in _least().parts)
    assert plan_memory(options(memory_bytes=fixed + 2 * NEEDS.copy_bytes), NEEDS, copies=None).copies
    assert not plan_memory(options(memory_bytes=fixed + 2 * NEEDS.copy_bytes - 2), NEEDS, copies=None).copies
    assert not plan_memory(options(memory_bytes=1 << 40), dataclasses.replace(NEEDS, copy_bytes=0), copies=None).copies


def _least(copies: bool | None = False, **given: int) -> MemoryPlan:
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan_memory(options(memory_bytes=1, **given), NEEDS, copies=copies)
    return caught.value.plan


def test_a_budget_that_is_too_small_says_by_how_much_and_shows_the_table() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"100\.0 MiB is [\d.]+ MiB too little.*at least \d+ MiB") as caught:
        plan_memory(options(memory_bytes=100 * MIB), NEEDS, copies=None)
    lines = caught.value.plan.table().splitlines()
    assert len({line.index("MiB") for line in lines[1:]}) == 1, "not aligned"
    assert next(line for line in lines if "base weights" in line).split()[2:] == ["100.0", "MiB", "reserved"]
    assert lines[-1].split() == ["--memory", "100.0", "MiB"]


def test_what_the_base_really_takes_replaces_the_estimate_or_ends_the_start() -> None:
    plan = plan_memory(options(memory_bytes=1024 * MIB), NEEDS, copies=False)
    assert plan.measured(90 * MIB).total_bytes == pytest.approx(plan.total_bytes - 10 * MIB)
    with pytest.raises(NotEnoughMemoryError, match="more than expected"):
        plan.measured(200 * MIB)


@pytest.mark.parametrize("field", ["memory_bytes", "kv_bytes", "adapter_bytes", "disk_bytes"])
def test_a_limit_of_nothing_is_refused(field: str, tiny_base: Callable[..., AddedBase]) -> None:
    with pytest.raises(InvalidInputError, match=f"{field}: 0 is not positive"):
        memory_plan(options(**{field: 0}), tiny_base().stored, native=False)


def test_resident_bytes_are_what_the_system_says() -> None:
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_a_server_keeps_to_its_budget(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    process, address = start(home, base.name, "--memory", "1GiB")
    watched, most = psutil.Process(process.pid), 0
    with InferenceClient(address, timeout_s=120) as client:

        def ask(number: int) -> int:
            adapter = ["", *(f"test/{kind}" for kind in KINDS)][number % 4]
            done = client.generate("fox " * (1 + number % 40), adapter, max_new_tokens=40, ignore_eos=True)
            return done.generated_tokens

        with ThreadPoolExecutor(16) as pool:
            for generated in pool.map(ask, range(96)):
                assert generated == 40
                most = max(most, watched.memory_info().rss)
        client.merge("test/lora")
        most = max(most, watched.memory_info().rss)
        limits = client.resident()
    assert most < 1024 * MIB
    assert 0 < limits.limit_bytes + limits.overlay_limit_bytes < 1024 * MIB
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_server_that_cannot_keep_to_its_budget_does_not_start(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    shutil.copytree(base.home.bases / base.name, home.bases / base.name)
    command = [
        sys.executable,
        "-m",
        "weft_client.cli",
        "serve",
        "--base",
        base.name,
        "--port",
        "0",
        "--memory",
        "64MiB",
    ]
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "ready" not in done.stdout
    assert "interpreter and libraries" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --memory 64.0 MiB is ")
