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
import sys
import threading


def spin_briefly() -> None:
    """Has OpenMP threads spin for a moment and then sleep, unless the environment says how they are to wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_NICENESS = 10
"""At 10 a thread gets about a tenth of a core that others want, too."""
_SWITCH_S = 0.0005


def step_aside() -> None:
    """Lets every other thread go first on a contended core, as far as the system knows threads apart (Linux does).

    For threads that load and merge: a step ends when the slowest of its workers does, so whoever takes a core from one
    of them takes it from every running request. Measured on two cores beside a thread that binds adapters (gap between
    the steps of eight requests, median / 99th percentile; 10 / 12 ms without it): 21 / 126 ms, and 15 / 22 ms when it
    steps aside. A load then takes 0.2 s instead of 0.05.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def pass_the_lock_on() -> None:
    """Has Python's threads hand its lock over ten times as readily as by default, 5 ms: a step asks for it several
    times, and each time might wait so long for a thread that loads."""
    sys.setswitchinterval(_SWITCH_S)
