"""Building an overlay: site by site, asking for room as it grows, and the same beside running steps."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.engines import Tracer
from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_registry.errors import ExhaustedError
from weft_server.torch_engine.decoder import TorchDecoder
from weft_server.torch_engine.engine import TorchEngine
from weft_server.torch_engine.merging import build_overlay
from weft_server.torch_engine.overlay import Overlay
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


def test_a_thousand_switches_leave_no_trace(engine: TorchEngine, tiny_base: Callable[..., AddedBase]) -> None:
    stored, options = tiny_base().stored, engine._options
    kinds = ("qalora", "lora", "ia3", "qalora", "dora")
    made = [random_adapter(kind, stored.spec, seed, strength=0.3) for seed, kind in enumerate(kinds)]
    adapters = [adapter.bound(torch.float32, stored) for adapter in made]
    decoder = Tracer(stored).decoder
    overlays = [build_overlay(stored, decoder, adapter) for adapter in adapters]
    # Room for all but one: a switch finds its weights kept ready, or builds them again.
    room = sum(overlay.size_bytes for overlay in overlays) - min(overlay.size_bytes for overlay in overlays) + 1
    switching = TorchEngine(stored, replace(options, overlay_bytes=room))
    switching.start(lambda events: None)
    before = base_of(switching)
    order = torch.randint(0, len(kinds), (1000,), generator=torch.Generator().manual_seed(3)).tolist()
    hot = [switching.merge(adapters[index]).hot for index in order]
    assert 100 < sum(hot) < 900
    for adapter, overlay in zip(adapters, overlays, strict=True):
        switching.merge(adapter)
        assert same(weights_of(switching._overlays.in_force), weights_of(overlay))
    switching.unmerge()
    assert same(base_of(switching), before)
    switching.close()


def weights_of(overlay: Overlay | None) -> list[torch.Tensor]:
    assert overlay is not None
    return [tensor for kernel in overlay.kernels.values() for tensor in tensors_of(kernel)]


def base_of(engine: TorchEngine) -> list[torch.Tensor]:
    decoder = engine._stepper.decoder
    assert isinstance(decoder, TorchDecoder)
    return [tensor.clone() for site in decoder.sites for tensor in tensors_of(decoder.kernel(site))]


def tensors_of(kernel: object) -> list[torch.Tensor]:
    found = [value for value in vars(kernel).values() if isinstance(value, torch.Tensor)]
    assert found, "a kernel without weights compares nothing"
    return found


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
