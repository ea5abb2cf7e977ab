"""How fast batches decode whose rows wear adapters, beside the base alone: `decode_cells.CELLS`.

64 prompt tokens and 64 new ones (16 with --quick), greedy, adapters on all linears, bfloat16. A row's value is the rate
of the steps that only decode: from the step after the one that gave the last request its first token, to the one that
ends the first request. Rows with `_whole` count new tokens over the whole time, prompts included. No prompt comes
twice. A ratio is to the base alone, run just before in the same process (with --quick: before every seventh cell); it
is the median over the repeats.

`bf16_neighbour_dependence`: the share of requests whose greedy tokens differ between a run alone and a run in a mixed
batch, each on an engine of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from benchmarks.decode_cells import CELLS, EVERY_KIND, Cell
from benchmarks.engines import Runner, engine_options, native_library_of
from benchmarks.report import Row, arguments, report
from benchmarks.samples import Prompts, Samples, popularity
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_server.torch_engine.engine import TorchEngine

PROMPT = 64

Wearers = Sequence[Adapter[Any] | None]


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    base = real_base(benchmark_home())
    wardrobe = _Wardrobe(base)
    samples = Samples()
    engine = TorchEngine(base, engine_options(native=native_library_of(base)))
    bench = _Bench(engine, wardrobe, Prompts(base.config.vocab_size, seed=0), samples)
    if args.quick:
        bench.run(CELLS, repeats=1, new=16, base_every=7)
    else:
        bench.run(CELLS, repeats=3, new=64, base_every=1)
    engine.close()
    rows = []
    for batch, cells in groupby(CELLS, lambda cell: cell.batch):
        rows += [samples.row(f"base_b{batch}{suffix}", "tokens/s") for suffix in ("", "_whole")]
        for cell in cells:
            rows.append(samples.row(cell.metric, "tokens/s", cell.baseline))
            rows.append(samples.row(f"{cell.metric}_whole", "tokens/s", f"{cell.baseline}_whole"))
    rows.append(_neighbours(wardrobe, requests=12, new=12) if args.quick else _neighbours(wardrobe, 64, 32))
    report(f"Decode, SmolLM2-135M int4, {PROMPT} prompt tokens", rows, args.json)


class _Wardrobe:
    """Makes adapters once, and says who wears what."""

    def __init__(self, base: StoredBase) -> None:
        self._base = base
        self._made: dict[tuple[str, int, int], Adapter[Any]] = {}

    def adapter(self, kind: str, rank: int, index: int) -> Adapter[Any]:
        """The adapter of these three; the same one every time."""
        key = (kind, rank, index)
        if key not in self._made:
            self._made[key] = random_adapter(kind, self._base.spec, index, rank=rank).bound(torch.bfloat16, self._base)
        return self._made[key]

    def wearers(self, cell: Cell) -> Wearers:
        """What each row of the cell's batch wears."""
        turns = len(cell.kinds)
        chosen = popularity(cell.popularity, -(-cell.batch // turns), cell.adapters)
        kinds = [cell.kinds[row % turns] for row in range(cell.batch)]
        return [
            None if kind == "base" else self.adapter(kind, cell.rank, chosen[row // turns])
            for row, kind in enumerate(kinds)
        ]


class _Bench:
    def __init__(self, engine: TorchEngine, wardrobe: _Wardrobe, prompts: Prompts, samples: Samples) -> None:
        self._engine = engine
        self._runner = Runner(engine)
        self._wardrobe = wardrobe
        self._prompts = prompts
        self._samples = samples

    def run(self, cells: Sequence[Cell], *, repeats: int, new: int, base_every: int) -> None:
        """Notes every cell's rates `repeats` times, with the base alone before every `base_every` of them."""
        for batch, group in groupby(cells, lambda cell: cell.batch):
            table = list(group)
            alone: Wearers = [None] * batch
            self._rates(alone, 4)
            for _ in range(repeats):
                for index, cell in enumerate(table):
                    if index % base_every == 0:
                        base = self._rates(alone, new)
                        self._note(f"base_b{batch}", base)
                    self._note(cell.metric, self._cell(cell, new), base)

    def _cell(self, cell: Cell, new: int) -> tuple[float, float]:
        wearers = self._wardrobe.wearers(cell)
        if not cell.merged:
            return self._rates(wearers, new)
        assert wearers[0] is not None
        self._engine.merge(wearers[0])
        try:
            return self._rates(wearers, new)
        finally:
            self._engine.unmerge()

    def _rates(self, wearers: Wearers, new: int) -> tuple[float, float]:
        run = self._runner.timed(self._prompts.batch(len(wearers), PROMPT), wearers, new)
        return run.decode_rate, run.whole_rate

    def _note(
        self, name: str, rates: tuple[float, float], against: tuple[float | None, float | None] = (None, None)
    ) -> None:
        for suffix, rate, other in zip(("", "_whole"), rates, against, strict=True):
            self._samples.add(name + suffix, rate, other)


def _neighbours(wardrobe: _Wardrobe, requests: int, new: int) -> Row:
    """Each request alone on one engine, and all of them at once on another, which has none of the first one's cache."""
    base = real_base(benchmark_home())
    prompts = Prompts(base.config.vocab_size, seed=1).batch(requests, PROMPT)
    wearers = wardrobe.wearers(Cell("", requests, (*EVERY_KIND, "base"), adapters=2))
    tokens = []
    for together in (False, True):
        engine = TorchEngine(base, engine_options(native=native_library_of(base)))
        runner = Runner(engine)
        if together:
            tokens.append(runner.run(prompts, wearers, new))
        else:
            tokens.append([runner.run([p], [w], new)[0] for p, w in zip(prompts, wearers, strict=True)])
        engine.close()
    differ = sum(alone != mixed for alone, mixed in zip(*tokens, strict=True))
    return Row("bf16_neighbour_dependence", differ / requests, "of requests")


if __name__ == "__main__":
    main()
