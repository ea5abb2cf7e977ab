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


_NICENESS = 5
"""At 5 a thread gets about a third of what another gets of a core that both want. With less it would too often lose the
core while it holds Python's lock, for which the step thread then waits."""
_SWITCH_S = 0.0005


def step_aside() -> None:
    """Lets every other thread go first on a contended core, as far as the system knows threads apart (Linux does).

    For threads that load and merge. Measured on two cores, eight streams over gRPC while four adapters a second are
    loaded (99th percentile of the gaps between tokens; 27 ms without loads): 36 ms, 29 when they step aside, 34 with a
    niceness of 10.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def pass_the_lock_on() -> None:
    """Has Python's threads hand its lock over ten times as readily as by default, 5 ms: a step asks for it several
    times, and each time might wait so long for a thread that loads."""
    sys.setswitchinterval(_SWITCH_S)
