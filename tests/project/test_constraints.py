"""constraints.txt pins everything that an installation with every extra brings, within the ranges of pyproject.toml."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Version]:
    """Version by canonical name."""
    lines = (root / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.fixture(scope="module")
def declared(root: Path) -> list[Requirement]:
    """Every requirement in pyproject.toml, extras included: but for vLLM, whose requirements contradict ours. It is
    developed with in an environment of its own, pinned by benchmarks/peers/vllm-requirements.txt."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name != "vllm"}
    texts = [*project["dependencies"], *(text for texts in extras.values() for text in texts)]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "weft"]


def test_every_declared_dependency_is_pinned_within_its_range(
    pins: dict[str, Version], declared: list[Requirement]
) -> None:
    assert len(declared) > 30
    for requirement in declared:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned: run `make lock`"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} against the pin {pin}"


def _wanted(need: Requirement, extras: frozenset[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def test_everything_that_comes_along_is_pinned(pins: dict[str, Version], declared: list[Requirement]) -> None:
    queue, seen = list(declared), set[tuple[str, frozenset[str]]]()
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert name in pins, f"{name} is not pinned: run `make lock`"
        if name == "torch":
            continue  # Its builds differ from platform to platform; torch itself is pinned.
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            pytest.fail(f"{name} is not installed: run `make venv`")
        queue += [need for need in map(Requirement, needs) if _wanted(need, extras)]
    assert len(seen) > len(declared)


def test_protobuf_generator_is_older_than_the_oldest_runtime_allowed(declared: list[Requirement]) -> None:
    # The runtime refuses code that is newer than itself. grpcio-tools 1.76 writes code for protobuf 6.31.1.
    by_name = {requirement.name: requirement for requirement in declared}
    assert str(by_name["grpcio-tools"].specifier) == "==1.76.0"
    assert not by_name["protobuf"].specifier.contains("6.31.0")
    assert not by_name["grpcio"].specifier.contains("1.75.9")
