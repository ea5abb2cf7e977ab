"""A short soak: the long one is `make soak`."""

from __future__ import annotations

from pathlib import Path

from tests.backends.fresh import only_on_disk
from tests.registry.soak import soak
from weft_registry.home import Home


@only_on_disk
def test_publishers_deleters_and_a_collector_lose_nothing(home: Home, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    report = soak(home, work, seconds=15)
    assert (report.losses, report.problems, report.resurrected) == ((), (), 0)
    assert report.published
