"""A process that pushes one artifact directory after another, each in a child of its own that is measured and bounded.

    python -m tests.registry.hostile.measured DIRECTORY_OF_THE_REGISTRY

It reads a directory a line, and answers a line of JSON (`Outcome`). What a child imports lazily, its parent has
imported: a child's CPU seconds are those of the push alone. Its peak of memory counts everything.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_CPU_S = 2.0
"""Every case takes less than one where the figures are from (docs/registry.md). An older processor takes up to
1.2, and 1.6 where its cores do other work besides."""
MAX_RSS_BYTES = 256 << 20
_STOP_AFTER_S = 20
"""Where a child is killed that does not end: beyond this nobody needs to know how long it would have taken."""


@dataclass(frozen=True)
class Outcome:
    """How one push ended."""

    error: str
    """The error's class; empty for a push that was accepted."""
    told: str
    """Its message and its violations."""
    cpu_s: float
    peak_bytes: int
    """The most memory that the whole process had at once."""


def push(directory: Path, home: Path) -> Outcome:
    """Pushes a directory to the embedded registry, and measures that."""
    from weft_registry import transfer
    from weft_registry.embedded import EmbeddedRegistry
    from weft_registry.errors import WeftError
    from weft_registry.home import Home
    from weft_registry.reference import AdapterName

    error, told = "", ""
    registry = EmbeddedRegistry(Home(home))
    before = _cpu_s()
    try:
        transfer.push(registry, directory, AdapterName("hostile", "artifact"), tags=["v1"], aliases=["production"])
    except WeftError as refused:
        error = type(refused).__name__
        told = "\n".join([refused.message, *(f"{v.field}: {v.description}" for v in refused.violations)])
    seconds = _cpu_s() - before
    registry.close()
    return Outcome(error, told[:20_000], seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Serves until its input ends."""
    home = Path(sys.argv[1])
    warm = Path(sys.argv[2])
    # A valid artifact is refused by nobody: everything that a push imports is there afterwards.
    assert push(warm, home.with_name(f"{home.name}-warm")).error == ""
    print("ready", flush=True)
    for line in sys.stdin:
        directory = Path(line.rstrip("\n"))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_CPU, (_STOP_AFTER_S, _STOP_AFTER_S))
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            signal.alarm(3 * _STOP_AFTER_S)  # Whoever waits for ever uses no CPU.
            status = 1
            try:
                answer = json.dumps(asdict(push(directory, home)))
                with os.fdopen(writing, "w") as pipe:
                    pipe.write(answer)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        print(answer or json.dumps({"died": status}), flush=True)


if __name__ == "__main__":
    main()
