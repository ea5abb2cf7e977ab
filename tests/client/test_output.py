"""Numbers, times and strangers' text, as people read them."""

import random
from datetime import UTC, datetime, timedelta, timezone

import pytest

from weft_client.cli.output import duration, moment, moment_us, printable, short, size, timestamp


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB"), (1 << 42, "4.0 TiB")],
)
def test_sizes(count: int, expected: str) -> None:
    assert size(count) == expected


def test_sizes_equal_those_of_repeated_division() -> None:
    near = [1024**power + more for power in range(1, 6) for more in (-1, 0, 1)]
    for count in (*near, *(random.Random(0).randrange(1 << bits) for bits in range(1, 53))):
        value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
        while value >= 1024 and len(units) > 1:
            value, units = value / 1024, units[1:]
        assert size(count) == (f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "0 us"), (8e-5, "80 us"), (0.04, "40 ms"), (2.5, "2.5 s"), (600, "10 min")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_times_are_told_in_utc() -> None:
    east = datetime(2026, 1, 31, 12, 0, 5, tzinfo=timezone(timedelta(hours=3)))
    assert moment(east) == "2026-01-31 09:00Z"
    assert timestamp(east) == "2026-01-31T09:00:05Z"
    assert timestamp(datetime(2026, 1, 31, tzinfo=UTC)) == "2026-01-31T00:00:00Z"


def test_stored_times_are_told_as_all_others() -> None:
    epoch, last = datetime(1970, 1, 1, tzinfo=UTC), 253_402_300_799_999_999  # The end of the year 9999.
    for time_us in (0, 59_999_999, 60_000_000, last, *(random.Random(0).randrange(last) for _ in range(1000))):
        assert moment_us(time_us) == moment(epoch + timedelta(microseconds=time_us))


def test_a_short_digest_is_twelve_digits() -> None:
    assert short("sha256:" + "0123456789abcdef" * 4) == "0123456789ab"


@pytest.mark.parametrize("evil", ["\x1b[2J", "\x07", "\r", "\x9b31m", "\u202e", "\u2066", "\ud800"])
def test_what_a_terminal_would_obey_is_replaced(evil: str) -> None:
    assert printable(f"a{evil}b").startswith("a\ufffd")


def test_every_script_is_printed_as_it_is() -> None:
    text = "tab\tand\nline, ünïcödé, 漢字, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, \U0001f469\u200d\U0001f680"
    assert printable(text) == text
