"""The stacked adapters of a batch: which adapters are active, and what they do at every site.

An adapter keeps its index for as long as it is active, whoever comes and goes around it. One whose last request has
left stays until another one comes, so that a batch that only shrinks changes nothing. What adapters do at a site is
stacked at the site's first use and kept as long as the active adapters of its kind stay the same; scales, which all
kinds share, as long as all active adapters do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from weft_adapters.kinds.kind import Adapter, Kind, LinearPack, LinearSite, SublayerPack, SublayerSite
from weft_adapters.scales import RowScale, input_scales, output_scales
from weft_adapters.segments import Segments

_S = TypeVar("_S")
_P = TypeVar("_P")


class ActiveAdapters:
    """The adapters of the running batch, by index. Owns their stacks; only the step thread touches it."""

    def __init__(self) -> None:
        self._adapters: list[Adapter[Any] | None] = []
        self._index: dict[str, int] = {}
        self._kinds: tuple[Kind[Any], ...] = ()
        """The kinds in the table, each once."""
        self._packs: dict[Kind[Any], dict[LinearSite, LinearPack | None]] = {}
        self._sublayers: dict[Kind[Any], dict[SublayerSite, SublayerPack | None]] = {}
        self._input_scales: dict[LinearSite, RowScale | None] = {}
        self._output_scales: dict[LinearSite, RowScale | None] = {}
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
            self._outdated(adapter.kind)
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

    def changed_sublayers(self, sublayers: Sequence[SublayerSite]) -> frozenset[SublayerSite]:
        """The sublayers at whose end active adapters do something."""
        return frozenset(site for site in sublayers if any(self._sublayer(kind, site) for kind in self._kinds))

    def apply_input(self, site: LinearSite, x_TK: Tensor, segments: Segments) -> None:
        """Scales the input of `site` for the rows of every active adapter that does, in place."""
        if segments.counts and any(kind.scales for kind in self._kinds):
            scale = self._scale(self._input_scales, input_scales, site)
            if scale is not None:
                scale.apply(x_TK, segments)

    def apply(self, site: LinearSite, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        """Changes the output `y` of `site` for the rows of every active adapter, in place: deltas, then scales."""
        if segments.counts:
            self._apply_packs(self._kinds, site, x_TK, y_TN, segments)
        if segments.counts and any(kind.scales for kind in self._kinds):
            scale = self._scale(self._output_scales, output_scales, site)
            if scale is not None:
                scale.apply(y_TN, segments)

    def apply_packs(self, site: LinearSite, x_TK: Tensor, y_TN: Tensor, segments: Segments) -> None:
        """Adds the deltas of kinds that are not low-rank only, for a decoder that does the rest itself."""
        self._apply_packs([kind for kind in self._kinds if not kind.low_rank], site, x_TK, y_TN, segments)

    def _apply_packs(
        self, kinds: Sequence[Kind[Any]], site: LinearSite, x_TK: Tensor, y_TN: Tensor, segments: Segments
    ) -> None:
        for kind in kinds:
            pack = self._pack(kind, site)
            if pack is not None:
                pack.apply(x_TK, y_TN, segments)

    def apply_sublayer(
        self, site: SublayerSite, input_TE: Tensor, residual_TE: Tensor, y_TE: Tensor, segments: Segments
    ) -> None:
        """Changes the output `y` of a sublayer for the rows of every active adapter, in place."""
        if not segments.counts:
            return
        for kind in self._kinds:
            pack = self._sublayer(kind, site)
            if pack is not None:
                pack.apply(input_TE, residual_TE, y_TE, segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of the stacks."""
        packs = [pack for by_site in self._packs.values() for pack in by_site.values()]
        ends = [pack for by_site in self._sublayers.values() for pack in by_site.values()]
        scales = [*self._input_scales.values(), *self._output_scales.values()]
        return sum(stack.size_bytes for stack in (*packs, *ends, *scales) if stack is not None)

    def _pack(self, kind: Kind[Any], site: LinearSite) -> LinearPack | None:
        return _made(self._packs.setdefault(kind, {}), site, lambda: kind.pack(self._of_kind(kind), site))

    def _sublayer(self, kind: Kind[Any], site: SublayerSite) -> SublayerPack | None:
        made = self._sublayers.setdefault(kind, {})
        return _made(made, site, lambda: kind.sublayer_pack(self._of_kind(kind), site))

    def _scale(
        self,
        made: dict[LinearSite, RowScale | None],
        make: Callable[[Sequence[Adapter[Any] | None], LinearSite], RowScale | None],
        site: LinearSite,
    ) -> RowScale | None:
        return _made(made, site, lambda: make(self._adapters, site))

    def _of_kind(self, kind: Kind[Any]) -> Sequence[Adapter[Any] | None]:
        return [adapter if adapter and adapter.kind is kind else None for adapter in self._adapters]

    def _outdated(self, kind: Kind[Any]) -> None:
        self._packs.pop(kind, None)
        self._sublayers.pop(kind, None)

    def _changed(self) -> None:
        self._kinds = tuple(dict.fromkeys(adapter.kind for adapter in self._adapters if adapter is not None))
        self._version += 1
        # Scales of all kinds stand in one table by index, as long as the table of adapters.
        self._input_scales.clear()
        self._output_scales.clear()

    def _drop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            index = self._index.pop(digest)
            adapter = self._adapters[index]
            assert adapter is not None
            self._outdated(adapter.kind)
            self._adapters[index] = None
        while self._adapters and self._adapters[-1] is None:
            self._adapters.pop()


def _made(stacks: dict[_S, _P], site: _S, make: Callable[[], _P]) -> _P:
    if site not in stacks:
        stacks[site] = make()
    return stacks[site]
