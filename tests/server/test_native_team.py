"""The native decoder's threads: programs of any length, one after the other, and an end that all of them notice."""

import ctypes
import time

import pytest

from tests.server import native
from weft_server.torch_engine.native import layout
from weft_server.torch_engine.native.library import Team, built, unsupported_here


class Programs:
    """Programs of so many operators that have nothing to do."""

    def __init__(self) -> None:
        self._step = layout.Step()
        self._nothing = layout.Pool(step=ctypes.addressof(self._step), width=32, group_size=32)

    def of(self, length: int) -> ctypes.Array[layout.Op]:
        op = layout.Op(layout.OpKind.POOL, 0, ctypes.addressof(self._nothing))
        return (layout.Op * length)(*[op] * length)


@pytest.mark.parametrize("lengths", [(2, 1), (3, 2, 1), (1, 5, 4)])
def test_threads_that_slept_through_a_program_notice_the_end(lengths: tuple[int, ...]) -> None:
    reason = unsupported_here()
    if reason is not None:
        pytest.skip(reason)
    programs = Programs()
    for attempt in range(60):
        team = Team(built(native.BUILT), 4)
        for length in lengths:
            team.run(programs.of(length))
            if length != lengths[-1]:
                # Long enough to fall asleep behind this program; not behind the last one.
                time.sleep(0.001 * (attempt % 3))
        team.close()


def test_more_threads_than_cores_all_end_right_behind_a_program() -> None:
    reason = unsupported_here()
    if reason is not None:
        pytest.skip(reason)
    programs = Programs()
    for attempt in range(150):
        team = Team(built(native.BUILT), 40)
        team.run(programs.of(1 + attempt % 7))
        team.close()
