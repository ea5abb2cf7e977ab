"""The cache's accounting and its moves, without a model."""

import random

import pytest
import torch

from weft_adapters.kinds.kind import KeyValues
from weft_server.torch_engine.kv_cache import CacheShape, KvCache

SHAPE = CacheShape(num_layers=2, num_kv_heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))
ROW = 64 * SHAPE.token_bytes


class Owner:
    """Whoever has a row."""


def test_a_row_is_the_next_power_of_two_and_no_less_than_64() -> None:
    cache: KvCache[Owner] = KvCache(SHAPE, 1 << 30)
    assert [cache.cost(n) // SHAPE.token_bytes for n in (1, 64, 65, 128, 129)] == [64, 64, 128, 128, 256]


def test_rows_stay_whole_while_others_come_and_go() -> None:
    cache: KvCache[Owner] = KvCache(SHAPE, 1 << 30)
    dice = random.Random(0)
    held: dict[Owner, float] = {}
    for turn in range(300):
        if held and dice.random() < 0.5:
            owner = dice.choice(list(held))
            del held[owner]
            cache.remove(owner, next(a for a in cache.arenas() if owner in a.owners))
        else:
            owner = Owner()
            arena = cache.add(owner, dice.choice((10, 100, 300)))
            held[owner] = float(turn)
            arena.key_LSHCD[:, arena.row(owner)] = turn
            arena.value_LSHCD[:, arena.row(owner)] = -turn
        for arena in cache.arenas():
            for row, owner in enumerate(arena.owners):
                assert (arena.key_LSHCD[:, row] == held[owner]).all()
                assert (arena.value_LSHCD[:, row] == -held[owner]).all()
        assert cache.reserved_bytes == sum(len(a.owners) * a.row_bytes for a in cache.arenas())
        assert cache.reserved_bytes <= cache.allocated_bytes


def test_allocated_bytes_never_exceed_the_limit() -> None:
    limit = 7 * ROW
    cache: KvCache[Owner] = KvCache(SHAPE, limit)
    dice = random.Random(1)
    held: list[Owner] = []
    refused = 0
    for _ in range(400):
        length = dice.choice((10, 100))
        if dice.random() < 0.6 and cache.fits(length):
            held.append(Owner())
            cache.add(held[-1], length)
        elif held:
            owner = held.pop(dice.randrange(len(held)))
            cache.remove(owner, next(a for a in cache.arenas() if owner in a.owners))
        refused += not cache.fits(100)
        assert cache.allocated_bytes <= limit
    assert refused


def test_a_wiped_row_leaves_no_nan_for_the_next_owner() -> None:
    cache: KvCache[Owner] = KvCache(SHAPE, 1 << 30)
    keep, bad = Owner(), Owner()
    cache.add(keep, 10)
    arena = cache.add(bad, 10)
    arena.key_LSHCD[:, arena.row(bad)] = float("nan")
    cache.remove(bad, arena, wipe=True)
    assert torch.isfinite(arena.key_LSHCD).all()


@pytest.mark.parametrize("length", [1, 5])
def test_a_prefix_stands_at_the_start_of_every_layer(length: int) -> None:
    cache: KvCache[Owner] = KvCache(SHAPE, 1 << 30)
    owner = Owner()
    arena = cache.add(owner, 20)
    prefix = KeyValues(torch.randn(2, 2, length, 4), torch.randn(2, 2, length, 4))
    arena.write_prefix(0, prefix)
    assert torch.equal(arena.key_LSHCD[:, 0, :, :length], prefix.key_LHPD)
    assert torch.equal(arena.value_LSHCD[:, 0, :, :length], prefix.value_LHPD)
