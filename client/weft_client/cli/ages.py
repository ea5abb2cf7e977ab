"""How old something may be, and how long: `7d`, `12h`. In options of the command line."""

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
        match = _AGE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no length of time such as 0s, 30m, 12h or 7d.", param, ctx)
        return float(int(match[1]) * _SECONDS[match[2]])


class Age(click.ParamType):  # type: ignore[type-arg]
    """A time that was so long ago, or a date (UTC)."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time that is meant, or `click.BadParameter`."""
        if isinstance(value, datetime):
            return value
        if match := _AGE.fullmatch(str(value)):
            try:
                return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
            except OverflowError:
                self.fail(f"{value!r} is before there was a calendar.", param, ctx)
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no age such as 30m, 12h, 7d or 4w, and no date such as 2026-01-31.", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
