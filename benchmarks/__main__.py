"""`python -m benchmarks [--quick]`: every benchmark of Weft itself, one after the other, each in a process of its own.

Those beside other engines need these installed: `make bench-peers`.
"""

from __future__ import annotations

import subprocess
import sys

NAMES = ("bench_parity", "bench_decode", "bench_serve", "bench_switch", "bench_memory", "bench_registry")


def main() -> None:
    """Runs them all; the exit status is that of the first one that failed."""
    for name in NAMES:
        status = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=False).returncode
        if status:
            raise SystemExit(status)


if __name__ == "__main__":
    main()
