"""Fuzzes every parser of the registry for a while: `make fuzz`, or python -m tests.registry.fuzz --seconds 600.

With atheris, which measures coverage, each parser has a process of its own for its share of the time; without it,
mutations of valid inputs go round. What is found is written to a file and printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.registry.fuzz.mutate import MAX_BYTES, mutated

_HANG_S = 10


def main() -> None:
    """Runs all targets, or with --target one of them under atheris."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the mutations; printed, so that a run can be repeated"
    )
    parser.add_argument("--findings", type=Path, default=Path(".cache/fuzz"))
    parser.add_argument("--target", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.findings.mkdir(parents=True, exist_ok=True)
    if arguments.target:
        _guided_target(arguments.target, arguments.seconds, arguments.findings)
    elif importlib.util.find_spec("atheris") is not None:
        _guided(arguments.seconds, arguments.findings)
    else:
        seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
        _unguided(arguments.seconds, seed, arguments.findings)


def _unguided(seconds: int, seed: int, findings: Path) -> None:
    from tests.registry.fuzz.targets import SEEDS, TARGETS

    print(f"fuzzing {len(TARGETS)} parsers for {seconds} s by mutation (no atheris here), seed {seed}", flush=True)
    generator, runs, bugs = random.Random(seed), Counter[str](), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, target in TARGETS.items():
            for _ in range(200):
                data = mutated(generator, SEEDS[name])
                runs[name] += 1
                # Whatever takes so long is a finding, too: the process ends, and says where it was.
                faulthandler.dump_traceback_later(_HANG_S, exit=True)
                try:
                    target(data)
                except Exception:  # noqa: BLE001 - whatever is no refusal is what is looked for
                    bugs += 1
                    path = findings / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
                    path.write_bytes(data)
                    print(f"{name}: {path}\n{traceback.format_exc(limit=-4)}", flush=True)
                faulthandler.cancel_dump_traceback_later()
    for name, count in runs.items():
        print(f"  {name:<12} {count:>12,} runs")
    print(f"{sum(runs.values()):,} runs, {bugs} findings")
    raise SystemExit(bugs > 0)


def _guided(seconds: int, findings: Path) -> None:
    from tests.registry.fuzz.targets import TARGETS

    share = max(1, seconds // len(TARGETS))
    print(f"fuzzing {len(TARGETS)} parsers with atheris, {share} s each", flush=True)
    failed, runs = [], 0
    for name in TARGETS:
        command = [sys.executable, "-W", "ignore", "-m", "tests.registry.fuzz", "--target", name]
        ran = subprocess.run(
            [*command, "--seconds", str(share), "--findings", str(findings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        found = re.search(r"stat::number_of_executed_units: *(\d+)", ran.stdout)
        runs += int(found[1]) if found else 0
        print(f"  {name:<12} {int(found[1]) if found else 0:>12,} runs", flush=True)
        if ran.returncode:
            failed.append(name)
            print("\n".join(ran.stdout.splitlines()[-40:]), flush=True)
    print(f"{runs:,} runs; {len(failed)} of {len(TARGETS)} parsers with findings: {', '.join(failed) or 'none'}")
    raise SystemExit(bool(failed))


def _guided_target(name: str, seconds: int, findings: Path) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    # Coverage is measured of what is imported here for the first time.
    with atheris.instrument_imports(include=["weft_registry", "tests.registry.fuzz.targets"]):
        from tests.registry.fuzz.targets import SEEDS, TARGETS
    with tempfile.TemporaryDirectory() as directory:
        for index, seed in enumerate(SEEDS[name]):
            (Path(directory) / str(index)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-timeout={_HANG_S}", "-rss_limit_mb=2048"]
        artifacts = f"-artifact_prefix={findings}/{name}-"
        atheris.Setup(["fuzz", *options, "-print_final_stats=1", artifacts, directory], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
