"""Writes refused attempts into the audit log, and does not let whoever makes them write it full.

Each identity (and address) has so many lines a minute, and all together have; what goes beyond is counted, and the
count is written with the next line. A thread of its own writes, since a refusal may come up inside of a transaction.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from weft_registry.catalog import audit
from weft_registry.catalog.database import Catalog
from weft_registry.errors import WeftError
from weft_registry.principal import Principal

MAX_PER_MINUTE = 10
"""Lines of one identity from one address."""
MAX_TOTAL_PER_MINUTE = 200
_MAX_REMEMBERED = 1000
_MAX_SUBJECT = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Denial:
    """One refusal, as it is written."""

    actor: str
    peer: str
    scope: str
    namespace: str
    subject: str
    left_out: int = 0


@dataclass
class _Window:
    since_s: float
    lines: int = 0
    left_out: int = 0


class DenialLog:
    """Owns a daemon thread, from the first refusal on. Thread-safe; `note` does not wait."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._clock = catalog, clock
        self._queue: queue.Queue[Denial | threading.Event | None] = queue.Queue()
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self._total = _Window(clock())
        self._thread: threading.Thread | None = None

    def note(self, principal: Principal, scope: str, namespace: str, subject: str) -> None:
        """Has it written that `principal` was refused `scope` in `namespace` ("*": everywhere)."""
        with self._lock:
            now = self._clock()
            key = (principal.name, principal.peer)
            window = self._windows.pop(key, None) or _Window(now)
            self._windows[key] = window
            while len(self._windows) > _MAX_REMEMBERED:
                self._windows.popitem(last=False)
            for some in (window, self._total):
                if now - some.since_s >= 60.0:
                    some.since_s, some.lines = now, 0
            if window.lines >= MAX_PER_MINUTE or self._total.lines >= MAX_TOTAL_PER_MINUTE:
                window.left_out += 1
                return
            window.lines, self._total.lines = window.lines + 1, self._total.lines + 1
            left_out, window.left_out = window.left_out, 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="weft-denials", daemon=True)
                self._thread.start()
            place = "" if namespace == "*" else namespace
            self._queue.put(Denial(principal.name, principal.peer, scope, place[:96], subject[:_MAX_SUBJECT], left_out))

    def flush(self) -> None:
        """Waits until all that was noted is written."""
        with self._lock:
            running = self._thread is not None
        if running:
            written = threading.Event()
            self._queue.put(written)
            written.wait()

    def close(self) -> None:
        """Writes what is left, and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                with self._catalog.write() as connection:
                    _write(connection, item)
            except WeftError as error:
                # The refusal stands; only its line is lost, and the server's log has it.
                _log.warning("a refusal could not be written to the audit log: %s: %s", item, error.message)


def _write(connection: Connection, denial: Denial) -> None:
    detail: dict[str, object] = {"scope": denial.scope}
    if denial.peer:
        detail["peer"] = denial.peer
    if denial.left_out:
        detail["left_out"] = denial.left_out
    audit.record(connection, denial.actor, "denied", denial.namespace, denial.subject, detail)
