"""The overlays that are kept: the one in force, and hot ones that a later merge swaps in without building anything."""

from __future__ import annotations

import threading
from collections import OrderedDict

from weft_registry.errors import ExhaustedError
from weft_server.torch_engine.overlay import Overlay


class OverlayStore:
    """Owns every finished overlay, by its adapter's digest, under one byte limit. Any thread may call it.

    When room is needed the least recently used overlay goes first. The one in force is never dropped: the step thread
    may be reading it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._overlays: OrderedDict[str, Overlay] = OrderedDict()
        self._in_force: Overlay | None = None

    @property
    def limit_bytes(self) -> int:
        """The most that all overlays may take, one under construction included."""
        return self._limit_bytes

    @property
    def size_bytes(self) -> int:
        """What the finished ones take."""
        with self._lock:
            return self._total_bytes()

    @property
    def in_force(self) -> Overlay | None:
        """The overlay that the steps use."""
        return self._in_force

    @property
    def hot(self) -> dict[str, int]:
        """Bytes by digest, the most recently used last; the one in force included."""
        with self._lock:
            return {digest: overlay.size_bytes for digest, overlay in self._overlays.items()}

    def find(self, digest: str) -> Overlay | None:
        """The overlay of an adapter, if it is here; it is now the most recently used."""
        with self._lock:
            overlay = self._overlays.get(digest)
            if overlay is not None:
                self._overlays.move_to_end(digest)
            return overlay

    def reserve(self, building: str, size_bytes: int) -> None:
        """Makes room for `size_bytes` of the overlay of `building`, as far as it has come.

        Called as it grows, so that memory is never over the limit while it is built. Raises `ExhaustedError` when the
        overlay does not fit beside the one in force; the hot ones are dropped only for what can fit.
        """
        with self._lock:
            kept_bytes = self._in_force.size_bytes if self._in_force else 0
            if kept_bytes + size_bytes > self._limit_bytes:
                raise ExhaustedError(
                    f"the merged weights of {building} outgrow the {self._limit_bytes} bytes allowed for merged weights"
                    + (f", of which {kept_bytes} are in force" if kept_bytes else "")
                    + ": raise --overlay-memory, "
                    + ("unmerge first, " if kept_bytes else "")
                    + "or go on serving it unmerged in the batch",
                    reason="OVERLAY_MEMORY",
                    metadata={
                        "limit_bytes": str(self._limit_bytes),
                        "in_force_bytes": str(kept_bytes),
                        "adapter_digest": building,
                    },
                )
            self._make_room(size_bytes)

    def add(self, overlay: Overlay) -> None:
        """Keeps a finished overlay, for which room was reserved."""
        with self._lock:
            self._overlays.pop(overlay.adapter.digest, None)
            self._make_room(overlay.size_bytes)
            self._overlays[overlay.adapter.digest] = overlay

    def put_in_force(self, overlay: Overlay | None) -> None:
        """Notes what the steps use from now on, which must be one of those kept, or None. Whoever switches sees to it
        that nothing is reserved between the switch and this note."""
        with self._lock:
            assert overlay is None or self._overlays.get(overlay.adapter.digest) is overlay, "not one of those kept"
            self._in_force = overlay

    def drop(self, digest: str) -> None:
        """Forgets the overlay of an adapter that is unloaded; nothing if there is none."""
        with self._lock:
            assert self._in_force is None or self._in_force.adapter.digest != digest, "the overlay is in force"
            self._overlays.pop(digest, None)

    def _make_room(self, size_bytes: int) -> None:
        for digest, overlay in list(self._overlays.items()):
            if self._total_bytes() + size_bytes <= self._limit_bytes:
                return
            if overlay is not self._in_force:
                del self._overlays[digest]

    def _total_bytes(self) -> int:
        return sum(overlay.size_bytes for overlay in self._overlays.values())
