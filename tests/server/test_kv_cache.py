"""The bytes of the cache, without a model: what a block takes, prefixes, and what an unused budget costs."""

import psutil
import pytest
import torch

from weft_adapters.kinds.kind import KeyValues
from weft_registry.errors import InvalidInputError
from weft_server.torch_engine.blocks import BLOCK_TOKENS, blocks_for
from weft_server.torch_engine.kv_cache import CacheShape, TorchKvStore

SHAPE = CacheShape(num_layers=2, num_kv_heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def test_a_block_is_the_keys_and_values_of_its_tokens_in_all_layers() -> None:
    store = TorchKvStore(SHAPE, 10 * SHAPE.block_bytes + 1)
    assert store.block_bytes == 2 * 2 * 2 * BLOCK_TOKENS * 4 * 4
    assert store.num_blocks == 10
    assert store.key_LHNSD.nbytes + store.value_LHNSD.nbytes == 10 * store.block_bytes


def test_a_budget_below_one_block_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidInputError, match=rf"--kv-memory 100: .* takes {SHAPE.block_bytes} bytes"):
        TorchKvStore(SHAPE, 100)


def test_a_budget_that_is_not_used_takes_no_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    store = TorchKvStore(SHAPE, 4 << 30)
    store.key_LHNSD[:, :, 0] = 1
    assert process.memory_info().rss - before < 64 << 20
    assert not store.value_LHNSD[1, 1, -1].any()


@pytest.mark.parametrize("length", [1, 5, 16, 40])
def test_a_prefix_stands_at_the_start_of_every_layer_and_touches_no_other_block(length: int) -> None:
    store = TorchKvStore(SHAPE, 8 * SHAPE.block_bytes)
    store.key_LHNSD[:] = float("nan")
    store.value_LHNSD[:] = float("nan")
    prefix = KeyValues(torch.randn(2, 2, length, 4), torch.randn(2, 2, length, 4))
    blocks = [6, 2, 5, 7]
    store.write_prefix(blocks, prefix)
    written = blocks_for(length)
    for cache, expected in ((store.key_LHNSD, prefix.key_LHPD), (store.value_LHNSD, prefix.value_LHPD)):
        rows = cache[:, :, blocks[:written]].flatten(2, 3)
        assert torch.equal(rows[:, :, :length], expected)
        assert not rows[:, :, length:].any()
        others = [block for block in range(8) if block not in blocks[:written]]
        assert cache[:, :, others].isnan().all()


def test_cleared_blocks_hold_no_nan_and_others_keep_theirs() -> None:
    store = TorchKvStore(SHAPE, 4 * SHAPE.block_bytes)
    store.key_LHNSD[:] = float("nan")
    store.value_LHNSD[:] = float("nan")
    store.clear([1, 3])
    store.clear([])
    for cache in (store.key_LHNSD, store.value_LHNSD):
        assert torch.isfinite(cache[:, :, [1, 3]]).all()
        assert cache[:, :, [0, 2]].isnan().all()
