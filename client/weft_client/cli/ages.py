"""How old something may be, how long, and until when: `7d`, `12h`. In options of the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_AGE = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Span(click.ParamType):  # type: ignore[type-arg]
    """A length of time, in seconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds, or `click.BadParameter`."""
        if isinstance(value, float):
            return value
        seconds = _seconds(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no length of time such as 0s, 30m, 12h or 7d.", param, ctx)
        return float(seconds)


class Age(click.ParamType):  # type: ignore[type-arg]
    """A time that was so long ago, or a date (UTC)."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time that is meant, or `click.BadParameter`."""
        if isinstance(value, datetime):
            return value
        if (seconds := _seconds(str(value))) is not None:
            try:
                return datetime.now(UTC) - timedelta(seconds=seconds)
            except OverflowError:
                self.fail(f"{value!r} is before there was a calendar.", param, ctx)
        found = _date(str(value))
        if found is None:
            self.fail(f"{value!r} is no age such as 30m, 12h, 7d or 4w, and no date such as 2026-01-31.", param, ctx)
        return found


class Deadline(click.ParamType):  # type: ignore[type-arg]
    """A time that is so far from now, or a date (UTC) to come."""

    name = "deadline"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time that is meant, or `click.BadParameter`."""
        if isinstance(value, datetime):
            return value
        now = datetime.now(UTC)
        if seconds := _seconds(str(value)):
            try:
                return now + timedelta(seconds=seconds)
            except OverflowError:
                self.fail(f"{value!r} is after the calendar ends.", param, ctx)
        found = _date(str(value))
        if found is None:
            self.fail(
                f"{value!r} is no time from now such as 12h, 30d or 8w, and no date such as 2036-01-31.", param, ctx
            )
        if found <= now:
            self.fail(f"{value!r} is past.", param, ctx)
        return found


def _seconds(text: str) -> int | None:
    match = _AGE.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match else None


def _date(text: str) -> datetime | None:
    """A date, or a time; one without a zone is in UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
