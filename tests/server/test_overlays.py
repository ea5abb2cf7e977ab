"""The overlays that are kept: what goes when room is needed, what never goes, and what is refused."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Adapter, LinearSite
from weft_registry.errors import ExhaustedError
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.overlays import OverlayStore


@dataclass(frozen=True)
class Bytes:
    """A merged kernel that is only its size."""

    size_bytes: int


def overlay(digest: str, size_bytes: int) -> Overlay:
    site = LinearSite(("layer",), (1,), 1)
    return Overlay(Adapter(digest, KINDS["qalora"], None, {}), {site: Bytes(size_bytes)})


def keep(store: OverlayStore, digest: str, size_bytes: int) -> Overlay:
    made = overlay(digest, size_bytes)
    store.reserve(digest, size_bytes)
    store.add(made)
    return made


def test_overlays_stay_hot_while_they_fit_and_the_least_recently_used_goes_first() -> None:
    store = OverlayStore(100)
    kept = {digest: keep(store, digest, 30) for digest in "abc"}
    assert store.hot == {"a": 30, "b": 30, "c": 30}
    assert store.find("a") is kept["a"]
    keep(store, "d", 30)
    assert list(store.hot) == ["c", "a", "d"]
    assert store.find("b") is None
    assert store.size_bytes == 90


def test_the_one_in_force_is_never_dropped_for_another() -> None:
    store = OverlayStore(100)
    store.put_in_force(keep(store, "a", 40))
    keep(store, "b", 40)
    keep(store, "c", 60)
    assert store.hot == {"a": 40, "c": 60}
    with pytest.raises(ExhaustedError, match=r"100 bytes.*40 are in force.*--overlay-memory, unmerge first"):
        store.reserve("d", 61)
    store.put_in_force(None)
    keep(store, "d", 61)
    assert store.hot == {"d": 61}


def test_what_can_never_fit_is_refused_and_costs_nobody_a_place() -> None:
    store = OverlayStore(100)
    keep(store, "a", 40)
    with pytest.raises(ExhaustedError, match="serving it unmerged") as caught:
        store.reserve("b", 101)
    assert caught.value.metadata["adapter_digest"] == "b"
    assert store.hot == {"a": 40}


def test_an_adapter_that_is_unloaded_takes_its_overlay_along() -> None:
    store = OverlayStore(100)
    keep(store, "a", 40)
    store.drop("a")
    store.drop("never heard of")
    assert store.hot == {}
    assert store.find("a") is None


def test_an_overlay_that_is_built_again_replaces_the_first() -> None:
    store = OverlayStore(100)
    keep(store, "a", 40)
    second = keep(store, "a", 50)
    assert store.find("a") is second
    assert store.size_bytes == 50


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keep", "use", "force", "unforce", "drop"]), st.sampled_from("abcde"), st.integers(1, 60)
        )
    )
)
def test_the_limit_holds_and_the_one_in_force_is_there_whatever_is_done(steps: list[tuple[str, str, int]]) -> None:
    store = OverlayStore(100)
    forced: Overlay | None = None
    for action, digest, size in steps:
        if action == "keep" and (forced is None or forced.adapter.digest != digest):
            fits = size + (forced.size_bytes if forced else 0) <= 100
            try:
                keep(store, digest, size)
            except ExhaustedError:
                assert not fits
            else:
                assert fits
                assert list(store.hot)[-1] == digest
        elif action == "use":
            store.find(digest)
        elif action == "force" and (found := store.find(digest)):
            forced = found
            store.put_in_force(forced)
        elif action == "unforce":
            forced = None
            store.put_in_force(None)
        elif action == "drop" and (forced is None or forced.adapter.digest != digest):
            store.drop(digest)
        assert store.size_bytes == sum(store.hot.values()) <= 100
        assert store.in_force is forced
        assert forced is None or store.find(forced.adapter.digest) is forced
