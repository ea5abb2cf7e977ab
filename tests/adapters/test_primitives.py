"""What oneDNN and torch keep of what they compiled: as oneDNN tells of every compilation, and malloc of its heap."""

import ctypes
import os
import subprocess
import sys

import pytest

from weft_adapters.primitives import keep_few_primitives
from weft_adapters.processor import multiplies_bfloat16

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
PROGRAM = """
import ctypes, sys
import torch
from weft_adapters.primitives import keep_few_primitives

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (*"abcd", "mapped", *"fg", "used", *"ij")]

def used_bytes():
    info = ctypes.CDLL(None).mallinfo2
    info.restype = Heap
    heap = info()
    return heap.used + heap.mapped

call, shapes = sys.argv[1] == "True", int(sys.argv[2])
if call:
    keep_few_primitives()
weight = torch.zeros(64, 8, dtype=torch.bfloat16)
torch.zeros(shapes + 16, 64, dtype=torch.bfloat16) @ weight
before = used_bytes()
for _ in range(2):
    print("pass", flush=True)
    for rows in range(16, shapes + 16):
        torch.zeros(rows, 64, dtype=torch.bfloat16) @ weight
print("pass", used_bytes() - before, flush=True)
"""
with_onednn = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2") or not multiplies_bfloat16(),
    reason="torch multiplies bfloat16 without oneDNN here, or malloc does not say how much is used",
)


def multiply(shapes: int, *, call: bool, **environment: str) -> tuple[int, int]:
    """Products of so many shapes, twice: how many were compiled again, and by how many bytes the heap grew."""
    free = {name: value for name, value in os.environ.items() if name not in NAMES}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(call), str(shapes)],
        env=free | {"ONEDNN_VERBOSE": "profile_create"} | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    _, first, again, last = ran.stdout.split("pass")
    assert first.count("create:cache_miss") == shapes, "oneDNN compiled each shape"
    return again.count("create:cache_miss"), int(last.split()[0])


@with_onednn
def test_the_shapes_of_a_large_step_are_compiled_once() -> None:
    assert multiply(100, call=True)[0] == 0


@with_onednn
def test_the_heap_does_not_grow_with_the_number_of_shapes() -> None:
    again, grown = multiply(800, call=True)
    default_again, default_grown = multiply(800, call=False)
    assert (again, default_again) == (800, 0)
    assert grown < default_grown / 2


@with_onednn
@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"])
def test_what_the_environment_says_of_onednn_stands(name: str) -> None:
    assert multiply(20, call=True, **{name: "10"})[0] == 20
    assert multiply(400, call=True, **{name: "500"})[0] == 0


def test_what_the_environment_says_of_torch_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    keep_few_primitives()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
