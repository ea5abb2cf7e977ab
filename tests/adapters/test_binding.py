"""Binding reads whole files at once, and still says which tensor is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.binding import WEIGHTS_FILE, bind
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact
from weft_registry.base import BaseSpec
from weft_registry.errors import CorruptionError, InvalidInputError

TinyBase = Callable[..., AddedBase]


@pytest.fixture
def spec(tiny_base: TinyBase) -> BaseSpec:
    return tiny_base().stored.spec


@pytest.fixture
def written(spec: BaseSpec, tmp_path: Path) -> tuple[RandomAdapter, Path]:
    """An adapter, and its artifact."""
    adapter = random_adapter("lora", spec, 1)
    adapter.write(tmp_path / "adapter", spec, "team/support")
    return adapter, tmp_path / "adapter"


def bound(directory: Path, spec: BaseSpec) -> Adapter[object]:
    return bind(directory, artifact.read(directory), spec, dtype=torch.bfloat16)


def mixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every third tensor in another dtype, so that no dtype of the file has all of them."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return {name: tensor.to(dtypes[index % 3]) for index, (name, tensor) in enumerate(tensors.items())}


def test_every_tensor_is_the_files_whatever_its_dtype(spec: BaseSpec, written: tuple[RandomAdapter, Path]) -> None:
    adapter, directory = written
    stored = mixed(adapter.tensors)
    save_file(stored, directory / WEIGHTS_FILE)
    found = bound(directory, spec).tensors
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16))


def test_data_that_begins_at_an_odd_byte_is_read(spec: BaseSpec, written: tuple[RandomAdapter, Path]) -> None:
    adapter, directory = written
    path = directory / WEIGHTS_FILE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    found = bound(directory, spec).tensors
    for name, tensor in adapter.tensors.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_the_one_tensor_that_is_not_finite_is_named(
    bad: float, spec: BaseSpec, written: tuple[RandomAdapter, Path]
) -> None:
    adapter, directory = written
    name = sorted(adapter.tensors)[7]
    adapter.tensors[name].view(-1)[3] = bad
    save_file(adapter.tensors, directory / WEIGHTS_FILE)
    # What is finite in the file is beyond what it is computed in; for the rest no other dtype helps.
    way_out = "compute in a wider one" if bad == 3.4e38 else "train it again with a lower learning rate"
    with pytest.raises(InvalidInputError, match=f"{name} is not finite in torch.bfloat16: .*{way_out}"):
        bound(directory, spec)


def test_a_truncated_file_is_damaged(spec: BaseSpec, written: tuple[RandomAdapter, Path]) -> None:
    path = written[1] / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptionError, match=f"{WEIGHTS_FILE} cannot be read.*truncated"):
        bound(written[1], spec)


def test_tensors_that_bind_to_nothing_or_are_missing_or_misshapen_are_all_named(
    spec: BaseSpec, written: tuple[RandomAdapter, Path]
) -> None:
    adapter, directory = written
    missing, misshapen = sorted(adapter.tensors)[:2]
    stored = {name: tensor for name, tensor in adapter.tensors.items() if name != missing}
    stored |= {misshapen: stored[misshapen].flatten(), "stray": torch.zeros(2)}
    save_file(stored, directory / WEIGHTS_FILE)
    with pytest.raises(InvalidInputError, match="does not bind") as caught:
        bound(directory, spec)
    assert {violation.field for violation in caught.value.violations} == {missing, misshapen, "stray"}


def test_what_is_bound_does_not_change_with_the_file(spec: BaseSpec, written: tuple[RandomAdapter, Path]) -> None:
    adapter, directory = written
    found = bound(directory, spec).tensors
    size_bytes = (directory / WEIGHTS_FILE).stat().st_size
    with (directory / WEIGHTS_FILE).open("r+b") as file:
        file.write(b"\0" * size_bytes)
    for name, tensor in adapter.tensors.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16))
