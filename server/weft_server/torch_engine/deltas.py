"""The stacked adapters of a batch: which adapters are active, and their packs at every linear site.

Packs are made at a site's first use and kept as long as the active adapters stay the same. An adapter whose last
request has left stays among them until another one comes, so that a batch that only shrinks never packs again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite
from weft_adapters.segments import Segments


class ActiveAdapters:
    """The adapters of the running batch, by index. Owns the packs."""

    def __init__(self) -> None:
        self._adapters: list[Adapter[Any]] = []
        self._index: dict[str, int] = {}
        self._packs: dict[LinearSite, list[LinearPack]] = {}

    def activate(self, adapters: Iterable[Adapter[Any]]) -> None:
        """Makes these adapters addressable. Those no longer wanted go only when a new one comes."""
        wanted = {adapter.digest: adapter for adapter in adapters}
        if wanted.keys() <= self._index.keys():
            return
        self._adapters = list(wanted.values())
        self._index = {digest: index for index, digest in enumerate(wanted)}
        self._packs.clear()

    def forget(self, digest: str) -> None:
        """Lets go of an adapter that left memory."""
        if digest in self._index:
            self._adapters, self._index = [], {}
            self._packs.clear()

    def index(self, digest: str) -> int:
        """The index of an active adapter."""
        return self._index[digest]

    def apply(self, site: LinearSite, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        """Adds every active adapter's delta at `site` to its own rows of `y`, in place."""
        if not segments.counts:
            return
        packs = self._packs.get(site)
        if packs is None:
            packs = self._packs[site] = self._pack(site)
        for pack in packs:
            pack.apply(x_TK, y_TN, segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of the packs."""
        return sum(pack.size_bytes for packs in self._packs.values() for pack in packs)

    def _pack(self, site: LinearSite) -> list[LinearPack]:
        kinds: dict[Kind[Any], None] = dict.fromkeys(adapter.kind for adapter in self._adapters)
        packs = (
            kind.pack([adapter if adapter.kind is kind else None for adapter in self._adapters], site) for kind in kinds
        )
        return [pack for pack in packs if pack is not None]
