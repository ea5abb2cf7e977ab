"""The stacked adapters of a batch: which adapters are active, and their packs at every linear site.

An adapter keeps its index for as long as it is active, whoever comes and goes around it. One whose last request has
left stays until another one comes, so that a batch that only shrinks changes nothing. Packs are made at a site's first
use and kept as long as the active adapters of their kind stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite
from weft_adapters.segments import Segments


class ActiveAdapters:
    """The adapters of the running batch, by index. Owns the packs; only the step thread touches it."""

    def __init__(self) -> None:
        self._adapters: list[Adapter[Any] | None] = []
        self._index: dict[str, int] = {}
        self._kinds: tuple[Kind[Any], ...] = ()
        """The kinds in the table, each once."""
        self._packs: dict[Kind[Any], dict[LinearSite, LinearPack | None]] = {}
        self._version = 0

    @property
    def adapters(self) -> Sequence[Adapter[Any] | None]:
        """The table, by index; None where an index is free."""
        return self._adapters

    @property
    def version(self) -> int:
        """Grows whenever the table changes."""
        return self._version

    def activate(self, adapters: Iterable[Adapter[Any]]) -> None:
        """Makes these adapters addressable. Those no longer wanted go only when a new one comes."""
        wanted = {adapter.digest: adapter for adapter in adapters}
        new = [adapter for digest, adapter in wanted.items() if digest not in self._index]
        if not new:
            return
        self._drop([digest for digest in self._index if digest not in wanted])
        free = [index for index, adapter in enumerate(self._adapters) if adapter is None]
        free += range(len(self._adapters), len(self._adapters) + len(new))
        for index, adapter in zip(free, new, strict=False):
            if index == len(self._adapters):
                self._adapters.append(None)
            self._adapters[index] = adapter
            self._index[adapter.digest] = index
            self._packs.pop(adapter.kind, None)
        self._changed()

    def forget(self, digest: str) -> None:
        """Lets go of an adapter that left memory."""
        if digest in self._index:
            self._drop([digest])
            self._changed()

    def index(self, digest: str) -> int:
        """The index of an active adapter."""
        return self._index[digest]

    def packed_sites(self, sites: Sequence[LinearSite]) -> frozenset[LinearSite]:
        """The sites at which active adapters of kinds that are not low-rank have something to add."""
        kinds = [kind for kind in self._kinds if not kind.low_rank]
        return frozenset(site for site in sites if any(self._pack(kind, site) for kind in kinds))

    def apply(self, site: LinearSite, x_TK: Tensor, y_TN: Tensor, segments: Segments, *, low_rank: bool = True) -> None:
        """Adds every active adapter's delta at `site` to its own rows of `y`, in place; without `low_rank` only those
        of kinds that are not low-rank."""
        if not segments.counts:
            return
        for kind in self._kinds:
            if kind.low_rank and not low_rank:
                continue
            pack = self._pack(kind, site)
            if pack is not None:
                pack.apply(x_TK, y_TN, segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of the packs."""
        return sum(pack.size_bytes for packs in self._packs.values() for pack in packs.values() if pack is not None)

    def _pack(self, kind: Kind[Any], site: LinearSite) -> LinearPack | None:
        packs = self._packs.setdefault(kind, {})
        if site not in packs:
            packs[site] = kind.pack([a if a and a.kind is kind else None for a in self._adapters], site)
        return packs[site]

    def _changed(self) -> None:
        self._kinds = tuple(dict.fromkeys(adapter.kind for adapter in self._adapters if adapter is not None))
        self._version += 1

    def _drop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            index = self._index.pop(digest)
            adapter = self._adapters[index]
            assert adapter is not None
            self._packs.pop(adapter.kind, None)
            self._adapters[index] = None
        while self._adapters and self._adapters[-1] is None:
            self._adapters.pop()
