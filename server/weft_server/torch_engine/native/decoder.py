"""The native decoder: the torch decoder's mathematics as a program of C operators.

A program is a list of operators over one `Step`, built once and run step after step; what changes from step to step
are the numbers in the `Step`. Where an adapter of a kind without low-rank factors touches a site, the program stops
there and the kind's own pack is applied to the same buffers; likewise at the end of a sublayer.

Unlike the torch decoder it rounds no weight (codes are multiplied as they are, scales and minima in float16 applied in
float32), keeps the residual stream in float32, and gives every row the same bits whatever its batch.

Legend: T rows, S rows whose logits are wanted, E hidden size, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter, LinearSite, SublayerSite
from weft_server.torch_engine.batch import StepBatch
from weft_server.torch_engine.deltas import ActiveAdapters
from weft_server.torch_engine.kv_cache import CacheShape
from weft_server.torch_engine.layers import load_layer
from weft_server.torch_engine.logits import Logits
from weft_server.torch_engine.native import layout
from weft_server.torch_engine.native.buffers import Buffers, HeadBuffers, Widths
from weft_server.torch_engine.native.kv_store import NativeKvStore
from weft_server.torch_engine.native.library import Team
from weft_server.torch_engine.native.low_rank import LowRankTable, lay_out
from weft_server.torch_engine.native.memory import Arena
from weft_server.torch_engine.native.scales import ScaleTable
from weft_server.torch_engine.native.weights import (
    NativeWeight,
    dense_bytes,
    dense_weight,
    int4_bytes,
    int4_weight,
)
from weft_server.torch_engine.overlay import Overlay
from weft_server.torch_engine.rope import RotaryTable
from weft_server.torch_engine.sites import site_bias, site_weight, stack_dense, stack_weights

Stop = Callable[[StepBatch, ActiveAdapters], None]
"""What is done between two lists of operators: adapters act on the buffers."""


@dataclass(frozen=True)
class _Touched:
    """Where active adapters do more than their low-rank factors say."""

    inputs: frozenset[LinearSite] = frozenset()
    """Sites whose input is scaled."""
    packed: frozenset[LinearSite] = frozenset()
    """Sites whose output gets a pack's delta."""
    outputs: frozenset[LinearSite] = frozenset()
    """Sites whose output is scaled."""
    sublayers: frozenset[SublayerSite] = frozenset()


@dataclass(frozen=True, eq=False)
class _Program:
    """Operators to run, each list followed by a stop; the last by the end."""

    runs: tuple[tuple[ctypes.Array[layout.Op], Stop | None], ...]
    arguments: tuple[ctypes.Structure, ...]
    """What the operators point at."""
    overlay: Overlay | None
    touched: _Touched
    """Where it stops."""


class NativeDecoder:
    """Implements `Decoder` on a CPU in bfloat16."""

    def __init__(self, base: StoredBase, library: Path, num_threads: int) -> None:
        config = base.config
        self.config = config
        self._group_size = base.spec.fingerprint.quant.group_size
        self._team = Team(library, num_threads)
        self._widths = Widths.of(config, self._group_size)
        self._layers = [load_layer(base, index, partial(_norm, base)) for index in range(config.num_layers)]
        arena = Arena(
            sum(int4_bytes(sum(site.out_features), site.in_features, self._group_size) for site in self.sites)
            + dense_bytes(config.vocab_size, config.hidden_size)
        )
        self._weights = {
            site: int4_weight(site_weight(base, site), site_bias(base, site), arena) for site in self.sites
        }
        self._head = dense_weight(base.head(torch.bfloat16), self._group_size, None, arena)
        # A tied embedding is read out of the head's blocks.
        self._embedding_VE = None if config.tie_word_embeddings else base.embedding(torch.bfloat16)
        self._final_norm_E = _norm(base, "model.norm")
        rope = RotaryTable(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
            config.context_length,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self._cos, self._sin = rope.halves()
        self._low_rank = LowRankTable(self.sites)
        self._scales = ScaleTable(self.sites)
        self._buffers = Buffers(self._widths, 0, 0)
        self._head_buffers = HeadBuffers(config.hidden_size, config.vocab_size, self._head_blocks, 0)
        self._cache: NativeKvStore | None = None
        self._step = layout.Step()
        self._program: _Program | None = None
        self._touched = _Touched()
        """Where the active adapters want a stop."""

    @property
    def size_bytes(self) -> int:
        """See `Decoder`."""
        embedding = 0 if self._embedding_VE is None else self._embedding_VE.nbytes
        return embedding + self._head.size_bytes + sum(weight.size_bytes for weight in self._weights.values())

    @property
    def sites(self) -> Sequence[LinearSite]:
        """See `Decoder`."""
        return [site for layer in self._layers for site in layer.sites]

    def new_cache(self, limit_bytes: int) -> NativeKvStore:
        """See `Decoder`."""
        c = self.config
        shape = CacheShape(c.num_layers, c.num_kv_heads, c.head_dim, torch.bfloat16, torch.device("cpu"))
        self._cache = NativeKvStore(shape, limit_bytes)
        self._program = None
        return self._cache

    def merged(
        self,
        site: LinearSite,
        before: Sequence[Int4Weight],
        after: Sequence[Int4Weight | Tensor],
        bias_N: Tensor | None,
    ) -> NativeWeight:
        """See `Decoder`."""
        weight = self._weights[site]
        quantized = [new for new in after if isinstance(new, Int4Weight)]
        if len(quantized) == len(after):
            return weight.merged(stack_weights(before), stack_weights(quantized), bias_N)
        return weight.dense(stack_dense(after), bias_N)

    def adopt(self, adapter: Adapter[Any]) -> Adapter[Any]:
        """See `Decoder`."""
        return lay_out(adapter, self.sites)

    def close(self) -> None:
        """Ends the threads."""
        self._team.close()

    def forward(self, step: StepBatch, adapters: ActiveAdapters, overlay: Overlay | None) -> Logits:
        """See `Decoder`."""
        self._make_room(step, adapters)
        program = self._program
        if program is None or program.overlay is not overlay or program.touched != self._touched:
            program = self._program = self._compile(overlay, self._touched)
        kept = self._describe(step, adapters)
        for ops, stop in program.runs:
            if len(ops):  # Two stops may follow each other.
                self._team.run(ops)
            if stop is not None:
                stop(step, adapters)
        del kept
        head, wanted = self._head_buffers, step.last_S.shape[0]
        return Logits(head.logits[:wanted], head.best[:wanted], head.token[:wanted])

    def _make_room(self, step: StepBatch, adapters: ActiveAdapters) -> None:
        changed = self._low_rank.update(adapters)
        if changed:
            self._scales.update(adapters)
            self._touched = _Touched(
                inputs=self._scales.scaled_inputs(),
                packed=adapters.packed_sites(self.sites),
                outputs=self._scales.scaled_outputs(),
                sublayers=adapters.changed_sublayers(self._ends),
            )
        rows, wanted = step.token_T.shape[0], step.last_S.shape[0]
        if rows > self._buffers.rows or self._low_rank.ranks > self._buffers.ranks:
            rows, ranks = max(_rounded(rows), self._buffers.rows), max(self._low_rank.ranks, self._buffers.ranks)
            self._buffers = Buffers(self._widths, rows, ranks)
            self._program = None
        if wanted > self._head_buffers.rows:
            c = self.config
            self._head_buffers = HeadBuffers(c.hidden_size, c.vocab_size, self._head_blocks, _rounded(wanted))
            self._program = None
        if changed or self._program is None:
            s = self._step
            for name, address in self._buffers.pointers().items():
                setattr(s, name, address)
            s.low_stride, s.pool_stride = self._buffers.ranks, self._buffers.groups
            s.low_rank, s.num_slots = self._low_rank.address, self._low_rank.table_MI.shape[1]
            s.scales = self._scales.address

    def _describe(self, step: StepBatch, adapters: ActiveAdapters) -> list[object]:
        """Writes the step into the struct; answers what must live as long as it is read."""
        s = self._step
        segments: list[tuple[int, int, int, int]] = []
        for index in step.segments.counts:
            adapter = adapters.adapters[index]
            if adapter is not None and adapter.kind.low_rank:
                rows = step.segments.rows(index)
                assert isinstance(rows, slice), "rows are grouped by wearer"
                segments.append((index, rows.start, rows.stop, 0))
        spans: list[tuple[int, int, int, int]] = []
        blocks = 0
        for span in step.spans:
            spans.append((span.rows.start, span.count, span.start, blocks))
            blocks += len(span.blocks)
        segment_array = np.array(segments, np.int32)
        span_array = np.array(spans, np.int32)
        block_array = np.fromiter(chain.from_iterable(span.blocks for span in step.spans), np.int32, blocks)
        s.num_rows, s.num_logits = step.token_T.shape[0], step.last_S.shape[0]
        s.num_merged, s.num_spans, s.num_segments = step.num_merged, len(spans), len(segments)
        token_T, embedding_VE = _with_virtual(step)
        s.token, s.position, s.last = token_T.data_ptr(), step.position_T.data_ptr(), step.last_S.data_ptr()
        s.embedded = None if embedding_VE is None else embedding_VE.data_ptr()
        s.slot = step.segments.adapter_T.data_ptr()
        s.segments, s.spans, s.blocks = segment_array.ctypes.data, span_array.ctypes.data, block_array.ctypes.data
        return [segment_array, span_array, block_array, token_T, embedding_VE]

    def _compile(self, overlay: Overlay | None, touched: _Touched) -> _Program:
        assert self._cache is not None, "new_cache comes before the first step"
        c, b = self.config, self._buffers
        step = ctypes.addressof(self._step)
        arguments: list[ctypes.Structure] = []
        runs: list[tuple[ctypes.Array[layout.Op], Stop | None]] = []
        run: list[ctypes.Structure] = []
        linears: list[layout.Linear] = []

        def flush(stop: Stop | None) -> None:
            ops = [layout.Op(kind, 0, ctypes.addressof(args)) for args in run for kind in layout.OPERATORS[type(args)]]
            runs.append(((layout.Op * len(ops))(*ops), stop))
            arguments.extend(run)
            run.clear()

        def pool(site: LinearSite) -> None:
            run.append(layout.Pool(step=step, width=site.in_features, group_size=self._group_size))

        def linear(site: LinearSite, x: Tensor, end: SublayerSite | None = None) -> None:
            """A site; with `end` its output goes onto the residual stream, through whoever acts at the end."""
            if site in touched.inputs:
                place = self._scales.place[site]
                run.append(layout.Scale(step=step, x=x.data_ptr(), width=site.in_features, place=place))
                pool(site)
            merged = overlay.kernels.get(site) if overlay else None
            assert merged is None or isinstance(merged, NativeWeight)
            ends = np.cumsum(site.out_features).tolist()
            changed = site in touched.packed or site in touched.outputs
            in_place = end is not None and not changed and end not in touched.sublayers
            wide = end is not None
            op = layout.Linear(
                step=step,
                weight=self._weights[site].address,
                merged=None if merged is None else merged.address,
                input=x.data_ptr(),
                output=b.wide.data_ptr() if end is None else None,
                sum=None if end is None or in_place else b.sum.data_ptr(),
                module=self._low_rank.first_module[site],
                num_modules=len(site.modules),
                module_end=(ctypes.c_int32 * layout.MOST_MODULES)(*ends),
            )
            if linears:
                linears[-1].next = ctypes.addressof(op)
            linears.append(op)
            run.append(op)
            if site in touched.packed:
                flush(_add_packs(site, x, b.sum if wide else b.wide))
            if site in touched.outputs:
                run.append(
                    layout.Scale(
                        step=step,
                        x=None if wide else b.wide.data_ptr(),
                        wide_x=b.sum.data_ptr() if wide else None,
                        width=sum(site.out_features),
                        place=self._scales.place[site] + 1,
                    )
                )
            if end in touched.sublayers:
                assert end is not None
                flush(_change_sublayer(end, b))
            if end is not None and not in_place:
                run.append(layout.Add(step=step, hidden=c.hidden_size))

        def norm(weight_E: Tensor) -> None:
            run.append(
                layout.Norm(
                    step=step,
                    norm=weight_E.data_ptr(),
                    epsilon=c.rms_norm_eps,
                    hidden=c.hidden_size,
                    group_size=self._group_size,
                )
            )

        table = self._head.dense_address if self._embedding_VE is None else self._embedding_VE.data_ptr()
        run.append(layout.Embed(step=step, table=table, hidden=c.hidden_size, blocked=self._embedding_VE is None))
        for index, layer in enumerate(self._layers):
            norm(layer.attention_norm_E)
            linear(layer.attention_in, b.normed)
            heads = {"heads": c.num_heads, "kv_heads": c.num_kv_heads, "head_dim": c.head_dim}
            run.append(
                layout.Rotate(
                    step=step,
                    cos=self._cos.data_ptr(),
                    sin=self._sin.data_ptr(),
                    query_norm=None if layer.query_norm_D is None else layer.query_norm_D.data_ptr(),
                    key_norm=None if layer.key_norm_D is None else layer.key_norm_D.data_ptr(),
                    cache=self._cache.layer(index),
                    epsilon=c.rms_norm_eps,
                    **heads,
                )
            )
            run.append(
                layout.Attention(
                    step=step,
                    cache=self._cache.layer(index),
                    window=layer.window or 0,
                    scale=c.head_dim**-0.5,
                    **heads,
                )
            )
            if layer.attention_out not in touched.inputs:
                pool(layer.attention_out)
            linear(layer.attention_out, b.inner, layer.attention_end)
            norm(layer.mlp_norm_E)
            linear(layer.mlp_in, b.normed)
            run.append(layout.Gate(step=step, inner=c.intermediate_size, group_size=self._group_size))
            linear(layer.mlp_out, b.inner, layer.mlp_end)
        run.append(
            layout.Head(
                step=step,
                weight=self._head.address,
                norm=self._final_norm_E.data_ptr(),
                epsilon=c.rms_norm_eps,
                num_out=c.vocab_size,
                **self._head_buffers.pointers(),
            )
        )
        flush(None)
        return _Program(tuple(runs), tuple(arguments), overlay, touched)

    @property
    def _ends(self) -> Sequence[SublayerSite]:
        return [end for layer in self._layers for end in (layer.attention_end, layer.mlp_end)]

    @property
    def _head_blocks(self) -> int:
        return -(-self.config.vocab_size // layout.BLOCK_N)


def _add_packs(site: LinearSite, x: Tensor, y: Tensor) -> Stop:
    def stop(step: StepBatch, adapters: ActiveAdapters) -> None:
        x_TK, y_TN = _rows(x, step, site.in_features), _rows(y, step, sum(site.out_features))
        adapters.apply_packs(site, x_TK, y_TN, step.segments)

    return stop


def _change_sublayer(end: SublayerSite, buffers: Buffers) -> Stop:
    def stop(step: StepBatch, adapters: ActiveAdapters) -> None:
        inputs, residual, y = (_rows(t, step, end.hidden) for t in (buffers.normed, buffers.hidden, buffers.sum))
        adapters.apply_sublayer(end, inputs, residual, y, step.segments)

    return stop


def _rows(buffer: Tensor, step: StepBatch, width: int) -> Tensor:
    """What the step's operators left in a buffer, which lies row after row whatever the buffer's own width."""
    rows = step.token_T.shape[0]
    return buffer.flatten()[: rows * width].view(rows, width)


def _with_virtual(step: StepBatch) -> tuple[Tensor, Tensor | None]:
    """The tokens, with rows of virtual ones counted -1, -2, ..., and the embeddings of those, one after the other."""
    if not step.embedded:
        return step.token_T, None
    token_T, begin = step.token_T.clone(), 0
    for virtual in step.embedded:
        count = virtual.rows.stop - virtual.rows.start
        token_T[virtual.rows] = torch.arange(-1 - begin, -1 - begin - count, -1)
        begin += count
    return token_T, torch.cat([virtual.embedding_TE.float() for virtual in step.embedded])


def _norm(base: StoredBase, name: str) -> Tensor:
    return base.tensor(f"{name}.weight").to(torch.bfloat16).contiguous()


def _rounded(rows: int) -> int:
    """The next power of two: buffers grow seldom."""
    return 1 << max(5, (rows - 1).bit_length())
