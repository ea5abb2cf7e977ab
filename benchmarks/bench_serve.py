"""`weft serve` under load, through gRPC, with 8, 64 and 1000 registered adapters.

Requests arrive by a Poisson process from one client process, which waits for nothing: prompts of 16 to 256 tokens, 8 to
128 new ones, adapters by Zipf's law among those registered. The servers run side by side, each with its own home and
64 MiB for adapters in memory (about 150 of these), and are loaded in turns with the same requests. The client shares
the machine with them.

`throughput_N`: new tokens a second with N adapters registered, from the first request to the last token of all, while
requests arrive half as fast again as the server can answer them; `registered_N_over_8` is the same, beside that with 8.
`ttft` is the time from sending a request to its first token, `itl` that between two messages of a stream, at half the
rate that saturates.

`first_token_cold`, `first_token_warm`: the same request to an idle server, for an adapter (rank 8 on all linears) that
it has never seen, and again; `cold_load` is the difference. `itl_p99_cold_over_warm`: eight streams run while a short
request comes four times a second, for such an adapter each time, or always for one that is loaded. `itl_max` is the
longest gap that any of the streams saw.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Row, arguments, report
from benchmarks.samples import Prompts, Samples
from benchmarks.serve_homes import Catalog, make_home
from benchmarks.server_process import ServerProcess
from benchmarks.subjects import benchmark_home, real_base
from benchmarks.traffic import Arrival, Outcome, poisson, replay
from weft_client.async_inference import AsyncInferenceClient

REGISTERED = (8, 64, 1000)
SERVER_OPTIONS = ("--adapter-memory", "64MiB")
OVERLOAD, MODERATE = 1.5, 0.5
STREAMS, PROBES_PER_S = 8, 4.0


@dataclass(frozen=True)
class Plan:
    """How long everything takes."""

    repeats: int
    window_s: float
    """In which the requests of one load of one server arrive."""
    cold_adapters: int
    """First requests to an idle server."""
    streams_s: float
    """Of the running streams, while adapters load or do not."""


QUICK = Plan(repeats=1, window_s=3.0, cold_adapters=8, streams_s=4.0)
FULL = Plan(repeats=5, window_s=15.0, cold_adapters=24, streams_s=8.0)


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    plan = QUICK if args.quick else FULL
    base = real_base(benchmark_home())
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(dir=benchmark_home().cache)))
        servers = {}
        for count in REGISTERED:
            # The last one's home also has those that are to be loaded cold, which an adapter can be only once.
            cold = _cold_adapters(FULL) if count == REGISTERED[-1] else 0
            home = make_home(directory / str(count), base.spec, Catalog(count, cold))
            servers[count] = ServerProcess(home, SERVER_OPTIONS)
            stack.callback(servers[count].stop)
        addresses = {count: server.wait_ready() for count, server in servers.items()}
        large = Catalog(0, _cold_adapters(plan)).large_names
        # Collections of garbage in this process would be counted as the server's pauses: one takes 0.1 s.
        gc.disable()
        rows = asyncio.run(_measure(addresses, plan, base.config.vocab_size, large))
    report("Serving, SmolLM2-135M int4, `weft serve` over gRPC", rows, args.json)


async def _measure(addresses: dict[int, str], plan: Plan, vocabulary: int, large: Sequence[str]) -> list[Row]:
    samples = Samples()
    clients = {count: AsyncInferenceClient(address) for count, address in addresses.items()}
    names = {count: Catalog(count).small_names for count in clients}
    # Every server is warmed up by it; the first one's says how fast is too fast for all of them.
    capacities = [await _capacity(client, names[count][:8], vocabulary) for count, client in clients.items()]
    print(f"about {capacities[0]:.1f} requests/s saturate it", file=sys.stderr)
    for repeat in range(plan.repeats):
        rates: dict[int, float] = {}
        for count, client in clients.items():
            rate, seed = OVERLOAD * capacities[0], 20 * repeat
            outcomes = await replay(client, poisson(rate, plan.window_s, names[count], vocabulary, seed))
            rates[count] = _throughput(outcomes)
            samples.add(f"throughput_{count}", rates[count])
            if count != REGISTERED[0]:
                samples.add(f"registered_{count}_over_{REGISTERED[0]}", rates[count], rates[REGISTERED[0]])
        for count, client in clients.items():
            rate, seed = MODERATE * capacities[0], 20 * repeat + 10
            _note_latency(
                samples, count, await replay(client, poisson(rate, plan.window_s, names[count], vocabulary, seed))
            )
    fresh = iter(large)
    last = clients[REGISTERED[-1]]
    prompts = Prompts(vocabulary, seed=3)
    await _first_tokens(samples, last, [next(fresh) for _ in range(plan.cold_adapters)], prompts)
    await _streams(samples, last, fresh, plan, prompts)
    for client in clients.values():
        await client.close()
    return _rows(samples)


async def _capacity(client: AsyncInferenceClient, names: Sequence[str], vocabulary: int) -> float:
    """Requests a second, of a burst; a smaller one goes before it, with all that happens only once."""
    for seed, size in ((1, 8), (2, 32)):
        burst = [replace(a, at_s=0.0) for a in poisson(size, 2, names, vocabulary, seed)[:size]]
        outcomes = _good(await replay(client, burst))
    return len(outcomes) / max(outcome.messages[-1][0] for outcome in outcomes)


def _throughput(outcomes: Sequence[Outcome]) -> float:
    """Tokens a second, from the first request to the last token."""
    tokens = sum(count for outcome in _good(outcomes) for _, count in outcome.messages)
    return tokens / max(outcome.messages[-1][0] for outcome in outcomes)


def _note_latency(samples: Samples, count: int, outcomes: Sequence[Outcome]) -> None:
    good = _good(outcomes)
    figures = {"ttft": [o.first_token_s for o in good], "itl": [gap for o in good for gap in o.gaps_s()]}
    for name, values in figures.items():
        for percent in (50, 99):
            samples.add(f"{name}_p{percent}_{count}", 1e3 * _percentile(values, percent))


async def _first_tokens(samples: Samples, client: AsyncInferenceClient, names: Sequence[str], prompts: Prompts) -> None:
    """Each adapter's first and second request, one at a time."""
    times: list[list[float]] = []
    for name in names:
        pair = []
        for _ in range(2):
            (outcome,) = _good(await replay(client, [Arrival(0.0, name, _prompt(prompts), 4)]))
            pair.append(1e3 * outcome.first_token_s)
        times.append([*pair, pair[0] - pair[1]])
    for what, values in zip(
        ("first_token_cold", "first_token_warm", "cold_load"), zip(*times, strict=True), strict=True
    ):
        for percent in (50, 99):
            samples.add(f"{what}_p{percent}", _percentile(values, percent))


async def _streams(
    samples: Samples, client: AsyncInferenceClient, fresh: Iterator[str], plan: Plan, prompts: Prompts
) -> None:
    warm = next(fresh)
    await client.load(warm)
    for _ in range(plan.repeats):
        gaps = {}
        for state in ("warm", "cold"):
            begin_s, end_s = 1.0, plan.streams_s
            streams = [Arrival(0.0, "", _prompt(prompts), 4000) for _ in range(STREAMS)]
            probes = [
                Arrival(begin_s + n / PROBES_PER_S, next(fresh) if state == "cold" else warm, _prompt(prompts), 4)
                for n in range(_probes(plan))
            ]
            outcomes = await replay(client, [*streams, *probes], cut_s=end_s)
            _good([outcome for outcome in outcomes if outcome.error])
            gaps[state] = [1e3 * gap for outcome in outcomes[:STREAMS] for gap in outcome.gaps_s(begin_s, end_s)]
        for figure, of in (("p99", lambda g: _percentile(g, 99)), ("max", max)):
            samples.add(f"itl_{figure}_warm", of(gaps["warm"]))
            samples.add(f"itl_{figure}_cold_over_warm", of(gaps["cold"]), of(gaps["warm"]))


def _probes(plan: Plan) -> int:
    """Short requests while the streams run; the last ones leave the streams a moment to show it."""
    return int(PROBES_PER_S * (plan.streams_s - 1.5))


def _cold_adapters(plan: Plan) -> int:
    """How many are loaded for the first time, the one that stands for the loaded ones included."""
    return plan.cold_adapters + plan.repeats * _probes(plan) + 1


def _rows(samples: Samples) -> list[Row]:
    few = REGISTERED[0]
    rows = [samples.row(f"throughput_{count}", "tokens/s") for count in REGISTERED]
    rows += [samples.row(f"registered_{count}_over_{few}", "tokens/s", f"throughput_{few}") for count in REGISTERED[1:]]
    for what in ("ttft", "itl"):
        rows += [samples.row(f"{what}_p{p}_{count}", "ms") for count in REGISTERED for p in (50, 99)]
    for what in ("first_token_cold", "first_token_warm", "cold_load"):
        rows += [samples.row(f"{what}_p{p}", "ms") for p in (50, 99)]
    for figure in ("p99", "max"):
        rows.append(samples.row(f"itl_{figure}_warm", "ms"))
        rows.append(samples.row(f"itl_{figure}_cold_over_warm", "ms", f"itl_{figure}_warm"))
    return rows


def _prompt(prompts: Prompts) -> tuple[int, ...]:
    return tuple(prompts.batch(1, 16)[0])


def _good(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The same. Raises `RuntimeError` if any failed: a refused request must not pass for a fast one."""
    failed = [outcome.error or "ended without a token" for outcome in outcomes if outcome.error or not outcome.messages]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(outcomes)} requests failed; the first: {failed[0]}")
    return outcomes


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    main()
