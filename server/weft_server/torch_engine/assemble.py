"""From the parts of a step to its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from weft_adapters.segments import Segments
from weft_server.torch_engine.batch import Embedded, Span, StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Part


class Assembler:
    """Makes steps for one table of active adapters. Keeps the latest `Segments`: while sequences answer, the rows and
    who wears what are the same from step to step, and so is all that sites derive from them."""

    def __init__(self, active: ActiveAdapters, device: torch.device) -> None:
        self._active = active
        self._device = device
        self._runs: tuple[tuple[int, int], ...] = ()
        self._segments = Segments([], device)

    def assemble(self, parts: Sequence[Part], overlay: Overlay | None) -> tuple[StepBatch, list[Part]]:
        """The step, and its parts in the order of its spans; each has one row of logits, that of its last token.

        A piece of a prompt has one only to show whether its numbers are finite.
        """
        num_merged, runs, ordered = self._by_wearer(parts, overlay)
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        spans: list[Span] = []
        embedded: list[Embedded] = []
        for part in ordered:
            sequence, begin = part.sequence, len(tokens)
            start = sequence.num_cached
            text = start - sequence.num_virtual
            if part.count == 1 and text >= 0:
                tokens.append(sequence.token_ids[text])
                positions.append(start)
            else:
                virtual = min(part.count, max(0, -text))
                if virtual:
                    embedding_TE = sequence.virtual_embeddings(start, virtual)
                    embedded.append(Embedded(slice(begin, begin + virtual), embedding_TE))
                    tokens += [0] * virtual
                tokens += sequence.token_ids[max(0, text) : max(0, text + part.count)]
                positions += range(start, start + part.count)
            end = len(tokens)
            spans.append(Span(slice(begin, end), start, sequence.blocks))
            last.append(end - 1)
        step = StepBatch(
            token_T=torch.tensor(tokens, device=self._device),
            position_T=torch.tensor(positions, device=self._device),
            segments=self._segments_of(runs),
            num_merged=num_merged,
            spans=spans,
            last_S=torch.tensor(last, device=self._device),
            embedded=embedded,
        )
        return step, ordered

    def _by_wearer(
        self, parts: Sequence[Part], overlay: Overlay | None
    ) -> tuple[int, tuple[tuple[int, int], ...], list[Part]]:
        """The rows of the merged adapter, the runs of (adapter index, rows), and the parts in the order of both."""
        merged_digest = overlay.adapter.digest if overlay else None
        merged: list[Part] = []
        base: list[Part] = []
        worn: dict[str, list[Part]] = {}
        for part in parts:
            digest = part.sequence.digest
            if not digest:
                base.append(part)
            elif digest == merged_digest:
                merged.append(part)
            else:
                worn.setdefault(digest, []).append(part)
        adapters = [group[0].sequence.adapter for group in worn.values()]
        self._active.activate(adapter for adapter in adapters if adapter is not None)
        by_index = sorted((self._active.index(digest), group) for digest, group in worn.items())
        num_merged = _rows(merged)
        runs = tuple((index, _rows(group)) for index, group in by_index)
        ordered = merged + [part for _, group in by_index for part in group] + base
        return num_merged, ((Segments.BASE, num_merged), *runs, (Segments.BASE, _rows(base))), ordered

    def _segments_of(self, runs: tuple[tuple[int, int], ...]) -> Segments:
        if runs != self._runs:
            self._runs = runs
            self._segments = Segments([index for index, rows in runs for _ in range(rows)], self._device)
        return self._segments


def _rows(parts: Iterable[Part]) -> int:
    return sum(part.count for part in parts)
