"""How an answer says that it may be out of date: noted where that is known, read where the answer is sent.

What is in between knows nothing of it. The note travels in a context variable, into threads too (`asyncio.to_thread`
copies the context, and the copy has the same list).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "x-weft-stale"
"""Of HTTP answers, and of gRPC's trailing metadata."""
_NOTES: ContextVar[list[str] | None] = ContextVar("weft_stale", default=None)


def note(text: str) -> None:
    """Says about the answer that is being made that it may be out of date, and since when. Plain ASCII."""
    notes = _NOTES.get()
    if notes is not None:
        notes.append(text)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """What is noted in here."""
    notes: list[str] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
