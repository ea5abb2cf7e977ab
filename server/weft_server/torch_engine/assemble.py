"""From the sequences of a plan to the tensors of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from weft_adapters.segments import Segments
from weft_server.torch_engine.batch import DecodeGroup, MergedRows, Prefill, StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.kv_cache import Arena
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.scheduler import Plan
from weft_server.torch_engine.sequence import Sequence


def assemble(
    plan: Plan, active: ActiveAdapters, overlay: Overlay | None, device: torch.device
) -> tuple[StepBatch, list[Sequence]]:
    """The step of a plan, and its sequences in the order of the step's logits.

    Decoding sequences stand in the order of their cache rows, arena by arena, so that an arena's leading rows are one
    group; prompts follow.
    """
    merged_digest = overlay.adapter.digest if overlay else None
    tokens: list[int] = []
    positions: list[int] = []
    wearers: list[Sequence] = []
    ordered: list[Sequence] = []
    last: list[int] = []
    decodes: list[DecodeGroup] = []
    for arena, group in _by_arena(plan.decodes).items():
        begin = len(tokens)
        tokens += [sequence.generated[-1] for sequence in group]
        position = [sequence.cached for sequence in group]
        positions += position
        wearers += group
        last += range(begin, len(tokens))
        position_B = torch.tensor(position, device=device)
        longest = max(position) + 1
        # A block of whole rows is contiguous, and products read it in place; one that ends within the rows is copied
        # first. Up to twice the length, reading too much is cheaper (measured: 62 against 170 us for 100 of 128).
        length = arena.row_length if 2 * longest >= arena.row_length else longest
        decodes.append(DecodeGroup(arena, slice(begin, len(tokens)), position_B, length))
        ordered += group
    prefills: list[Prefill] = []
    for sequence in plan.prefills:
        assert sequence.arena is not None
        begin, prompt = len(tokens), sequence.request.token_ids
        tokens += prompt
        positions += range(sequence.cached, sequence.cached + len(prompt))
        wearers += [sequence] * len(prompt)
        last.append(len(tokens) - 1)
        rows = slice(begin, len(tokens))
        prefills.append(Prefill(sequence.arena, sequence.arena.row(sequence), rows, sequence.cached))
        ordered.append(sequence)
    wears_merged = [s.adapter is not None and s.adapter.digest == merged_digest for s in wearers]
    own = [s.adapter for s in ordered if s.adapter is not None and s.adapter.digest != merged_digest]
    active.activate(own)
    indices = [
        Segments.BASE if s.adapter is None or merged else active.index(s.adapter.digest)
        for s, merged in zip(wearers, wears_merged, strict=True)
    ]
    step = StepBatch(
        token_T=torch.tensor(tokens, device=device),
        position_T=torch.tensor(positions, device=device),
        segments=Segments(indices, device),
        merged=_merged_rows(wears_merged, device),
        decodes=decodes,
        prefills=prefills,
        last_S=torch.tensor(last, device=device),
    )
    return step, ordered


def _by_arena(sequences: list[Sequence]) -> dict[Arena[Sequence], list[Sequence]]:
    arenas: dict[Arena[Sequence], set[int]] = {}
    for sequence in sequences:
        assert sequence.arena is not None
        arenas.setdefault(sequence.arena, set()).add(id(sequence))
    # New sequences stand after the old ones in their arena, so those that decode are its leading rows.
    groups = {arena: arena.owners[: len(ids)] for arena, ids in arenas.items()}
    assert all({id(s) for s in group} == arenas[arena] for arena, group in groups.items())
    return groups


def _merged_rows(wears_merged: list[bool], device: torch.device) -> MergedRows | None:
    if not any(wears_merged):
        return None
    if all(wears_merged):
        return MergedRows(None, None)
    flags = torch.tensor(wears_merged, device=device)
    rows: list[Tensor] = [f.nonzero().flatten() for f in (flags, ~flags)]
    return MergedRows(*rows)
