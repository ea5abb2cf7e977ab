"""Building an overlay: site by site, asking for room as it grows, and the same beside running steps."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.engines import Tracer
from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_registry.errors import ExhaustedError
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.overlays import OverlayStore


@pytest.mark.parametrize("kind", ["lora", "qalora"])
def test_room_is_asked_for_at_every_site_and_for_all_in_the_end(kind: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    decoder = Tracer(stored).decoder
    asked: list[int] = []
    overlay = build_overlay(
        stored, decoder, random_adapter(kind, stored.spec, 1).bound(torch.float32), reserve=asked.append
    )
    assert list(overlay.kernels) == list(decoder.sites)
    assert len(asked) == len(decoder.sites)
    assert asked == sorted(set(asked))
    assert asked[-1] == overlay.size_bytes == sum(kernel.size_bytes for kernel in overlay.kernels.values())


def test_a_build_without_room_ends_at_the_site_that_outgrew_it(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    decoder = Tracer(stored).decoder
    adapter = random_adapter("lora", stored.spec, 1).bound(torch.float32)
    sizes: list[int] = []
    build_overlay(stored, decoder, adapter, reserve=sizes.append)
    store, asked = OverlayStore(sizes[2]), []

    def reserve(size_bytes: int) -> None:
        asked.append(size_bytes)
        store.reserve(adapter.digest, size_bytes)

    with pytest.raises(ExhaustedError):
        build_overlay(stored, decoder, adapter, reserve=reserve)
    assert asked == sizes[:4]
    assert store.hot == {}


def test_an_overlay_built_beside_running_steps_is_the_same(tiny_base: Callable[..., AddedBase]) -> None:
    stored = tiny_base().stored
    tracer = Tracer(stored)
    adapter = random_adapter("qalora", stored.spec, 1, strength=0.3).bound(torch.float32)
    quiet = build_overlay(stored, tracer.decoder, adapter)
    looks = 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        return True

    resting = build_overlay(stored, tracer.decoder, adapter, busy=busy)
    assert looks == len(tracer.decoder.sites)
    a, b = (tracer.run([[5, 6, 7]], [adapter], 4, overlay)[0] for overlay in (quiet, resting))
    assert torch.equal(a.logits_SV, b.logits_SV)
