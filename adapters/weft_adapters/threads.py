"""How torch's worker threads wait for each other. To be decided before torch is first imported.

By default an OpenMP thread spins for milliseconds at the end of every parallel product. On an idle machine that is the
fastest way to wait. Beside anything else that wants a core it is ruinous: the spinning keeps the core from the very
thread that is waited for. Sleeping at once is the opposite. Measured on two cores (decode step of 8 rows beside one
other busy process; tokens a second of an otherwise idle server, batch 1 / 8 / 32):

| | busy machine | idle machine |
|---|---|---|
| spin (libgomp's default) | 1,712 ms | 41 / 146 / 313 |
| spin 10,000 times, then sleep | 129 ms | 40 / 142 / 277 |
| sleep | 37 ms | 23 / 83 / 197 |
"""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Has OpenMP threads spin for a moment and then sleep, unless the environment says how they are to wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
