"""What commands print: JSON for programs, tables for people. Knows nothing of what the values mean."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from typing import Any

import click

GAP = 2
FOLDED_WIDTH = 12
"""What a column that may fold still needs to be readable."""

_EPOCH = date(1970, 1, 1)
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@dataclass(frozen=True)
class Column:
    """A column of a table. One that folds gives way first on a narrow terminal."""

    title: str
    right: bool = False
    folds: bool = False


def echo_json(value: Any) -> None:
    """Prints one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def echo_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Prints rows: in colours and folded to the terminal, or plainly where stdout is not one.

    A terminal too narrow for the columns gets one `title  value` line each. Without rows, `empty` goes to stderr.
    """
    if not rows:
        click.echo(empty, err=True)
        return
    cells = rows if _is_plain(rows) else [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _echo_on_terminal(columns, cells)
    else:
        _echo_plain(columns, cells)


def echo_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Prints `title  value` lines, the values aligned."""
    pairs = [(title, printable(value)) for title, value in fields]
    width = max(len(title) for title, _ in pairs) + GAP
    for title, value in pairs:
        click.echo(f"{title:<{width}}{value}".rstrip())


def printable(text: str) -> str:
    """`text` without what a terminal obeys, for it comes from strangers: control characters and changes of direction.

    Joiners stay: words of many scripts need them.
    """
    return "".join("\ufffd" if _obeyed(character) else character for character in text)


def size(count: int) -> str:
    """Bytes for people: `1.2 MiB`."""
    if count < 1 << 10:
        return f"{count} B"
    if count < 1 << 20:
        return f"{count / (1 << 10):.1f} KiB"
    if count < 1 << 30:
        return f"{count / (1 << 20):.1f} MiB"
    if count < 1 << 40:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{count / (1 << 40):.1f} TiB"


def moment(when: datetime) -> str:
    """A time for people, in UTC: `2026-01-31 12:00Z`."""
    return when.astimezone(UTC).isoformat(" ", "minutes").removesuffix("+00:00") + "Z"


def moment_us(time_us: int) -> str:
    """The same of microseconds since 1970, UTC, in a third of the time."""
    day, minute = divmod(time_us // 60_000_000, 24 * 60)
    return f"{_date(day)} {_time(minute)}Z"


def timestamp(when: datetime) -> str:
    """A time for programs: `2026-01-31T12:00:00Z`."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def short(digest: str) -> str:
    """The first twelve digits of a digest."""
    return digest.removeprefix("sha256:")[:12]


def duration(seconds: float) -> str:
    """A duration for people: `80 us`, `12 ms`, `3.4 s`, `5 min`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def share(part: float, whole: float) -> str:
    """A part of a whole for people: `12.5%`; `-` of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


# The dates in a listing of thousands are few, and so are the minutes of a day.
@lru_cache(maxsize=4096)
def _date(day: int) -> str:
    return (_EPOCH + timedelta(day)).isoformat()


@cache
def _time(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _is_plain(rows: Iterable[Sequence[str]]) -> bool:
    """Whether there is nothing to look at more closely: a listing may have a hundred thousand cells."""
    text = "".join(map("".join, rows))
    return text.isascii() and text.isprintable()


def _obeyed(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _DIRECTIONS


def _echo_plain(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.title for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    # With `%`, which takes two thirds of the time of `format`.
    form = (" " * GAP).join(
        f"%{'' if column.right else '-'}{width}s" for column, width in zip(columns, widths, strict=True)
    )
    # At once: ten thousand lines, one by one, take longer than to find them.
    click.echo("\n".join([(form % tuple(line)).rstrip() for line in lines]))


def _echo_on_terminal(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(cell_len(line[i]) for line in [[c.title for c in columns], *rows]) for i in range(len(columns))]
    needed = sum(
        min(width, FOLDED_WIDTH) if column.folds else width for column, width in zip(columns, widths, strict=True)
    )
    if needed + GAP * (len(columns) - 1) > console.width:
        for row in rows:
            echo_fields((column.title.lower(), cell) for column, cell in zip(columns, row, strict=True))
            click.echo()
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=not column.folds, overflow="fold"
        )
    for row in rows:
        # As text: a name in square brackets is no markup.
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
