"""Prefixes on their way to vLLM: what a request carries, and what a worker keeps of a file. Needs no vLLM."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.binding import bind
from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import (
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnsupportedError,
    WeftError,
)
from weft_server.vllm_engine.prefix_request import PrefixAdapter, prefix_adapter, prefix_request, read_request
from weft_server.vllm_engine.prefix_store import PrefixShape, PrefixStore, local_heads

DIGEST = "sha256:" + "a" * 64
CPU = torch.device("cpu")


@pytest.fixture
def adapter(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> tuple[PrefixAdapter, AddedBase]:
    base = tiny_base()
    directory = tmp_path / "prefix"
    random_adapter("prefix", base.stored.spec, 1).write(directory, base.stored.spec, "test/prefix")
    manifest = artifact.read(directory)
    return prefix_adapter(directory, manifest, manifest.digest()), base


def shape(base: AddedBase, rank: int = 0, size: int = 1) -> PrefixShape:
    spec = base.stored.spec
    return PrefixShape(spec.num_layers, spec.num_kv_heads, spec.head_dim, local_heads(spec.num_kv_heads, rank, size))


@pytest.mark.parametrize(
    ("heads", "size", "wanted"),
    [
        (4, 1, [[0, 1, 2, 3]]),
        (4, 2, [[0, 1], [2, 3]]),
        (4, 4, [[0], [1], [2], [3]]),
        (2, 4, [[0], [0], [1], [1]]),
        (1, 2, [[0], [0]]),
    ],
)
def test_heads_are_dealt_out_as_vllm_does(heads: int, size: int, wanted: list[list[int]]) -> None:
    assert [list(local_heads(heads, rank, size)) for rank in range(size)] == wanted


@pytest.mark.parametrize("size", [1, 2, 4])
def test_workers_keep_what_the_kind_reads_each_its_heads(adapter: tuple[PrefixAdapter, AddedBase], size: int) -> None:
    prefix, base = adapter
    directory = Path(prefix.file).parent
    manifest = artifact.read(directory)
    bound = bind(directory, manifest, base.stored.spec, dtype=torch.float32, digest=prefix.digest)
    wanted = bound.kind.key_values(bound)
    assert wanted is not None
    for rank in range(size):
        heads = local_heads(base.stored.spec.num_kv_heads, rank, size)
        store = PrefixStore(directory, 1 << 20, shape(base, rank, size), torch.float32, CPU)
        rows_L2PhD = store.get(prefix)
        assert rows_L2PhD.is_contiguous()
        for found, whole_LHPD in zip(rows_L2PhD.unbind(1), (wanted.key_LHPD, wanted.value_LHPD), strict=True):
            assert torch.equal(found.transpose(1, 2), whole_LHPD[:, list(heads)])


def test_what_was_used_least_recently_goes_first(adapter: tuple[PrefixAdapter, AddedBase]) -> None:
    prefix, base = adapter
    one, two, three = (replace(prefix, digest=f"sha256:{i:064}") for i in (1, 2, 3))
    size = PrefixStore(Path(prefix.file).parent, 1 << 20, shape(base), torch.float32, CPU).get(one).nbytes
    store = PrefixStore(Path(prefix.file).parent, 2 * size, shape(base), torch.float32, CPU)
    first, second = store.get(one), store.get(two)
    assert store.get(one) is first
    store.get(three)
    assert store.size_bytes == 2 * size
    assert store.get(one) is first
    assert store.get(two) is not second
    store.forget(two.digest)
    store.forget(two.digest)
    assert store.size_bytes == size


def test_a_file_that_is_not_the_one_is_refused(adapter: tuple[PrefixAdapter, AddedBase], tmp_path: Path) -> None:
    prefix, base = adapter
    other = tmp_path / "other.safetensors"
    save_file({"prompt_embeddings": torch.zeros(prefix.num_virtual_tokens, 4)}, other)
    store = PrefixStore(Path(prefix.file).parent, 1 << 20, shape(base), torch.float32, CPU)
    cases: list[tuple[type[WeftError], PrefixAdapter]] = [
        (PreconditionError, replace(prefix, file=str(other))),
        (PreconditionError, replace(prefix, file=str(Path(prefix.file).parent / ".." / "other.safetensors"))),
        (NotFoundError, replace(prefix, file=prefix.file + ".away")),
        (CorruptionError, replace(prefix, sha256=DIGEST)),
        (InvalidInputError, replace(prefix, num_virtual_tokens=prefix.num_virtual_tokens + 1)),
    ]
    for error, wrong in cases:
        with pytest.raises(error):
            store.get(wrong)
    assert store.size_bytes == 0


def test_numbers_that_are_not_finite_in_the_models_dtype_are_refused(
    adapter: tuple[PrefixAdapter, AddedBase],
) -> None:
    prefix, base = adapter
    file = Path(prefix.file)
    rows = load_file(file)["prompt_embeddings"]
    rows[3, 5] = 1e30
    save_file({"prompt_embeddings": rows}, file)
    large = replace(prefix, sha256=digests.of_file(file))
    PrefixStore(file.parent, 1 << 20, shape(base), torch.float32, CPU).get(large)
    with pytest.raises(InvalidInputError, match="not finite"):
        PrefixStore(file.parent, 1 << 20, shape(base), torch.float16, CPU).get(large)


def test_a_request_is_read_as_it_was_written(adapter: tuple[PrefixAdapter, AddedBase]) -> None:
    prefix, _ = adapter
    ids, salt, extra = prefix_request(prefix)
    assert len(ids) == prefix.num_virtual_tokens
    assert prefix.digest in salt
    assert read_request(extra["kv_transfer_params"], salt, len(ids) + 1) == prefix
    assert read_request(None, None, 1) is None
    assert read_request({"do_remote_prefill": True}, "another salt", 1) is None


def test_what_no_request_would_carry_is_refused(adapter: tuple[PrefixAdapter, AddedBase]) -> None:
    prefix, _ = adapter
    ids, salt, extra = prefix_request(prefix)
    params, enough = extra["kv_transfer_params"], len(ids) + 1
    block = params["weft_prefix"]
    blocks: list[Any] = [
        [],
        {},
        {**block, "more": 1},
        {**block, "num_virtual_tokens": True},
        {**block, "sha256": "md5:0"},
        {**block, "digest": DIGEST},
        {**block, "num_virtual_tokens": 0},
    ]
    for wrong in blocks:
        with pytest.raises(InvalidInputError):
            read_request({"weft_prefix": wrong}, salt, enough)
    for arguments in ((params, None, enough), (params, salt, len(ids)), (None, salt, enough)):
        with pytest.raises(InvalidInputError):
            read_request(*arguments)


def test_another_kind_is_no_prefix(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base()
    random_adapter("lora", base.stored.spec, 1).write(tmp_path / "lora", base.stored.spec, "test/lora")
    with pytest.raises(UnsupportedError, match="'lora'"):
        prefix_adapter(tmp_path / "lora", artifact.read(tmp_path / "lora"), DIGEST)
