"""The moves of a registry's aliases, brought into an event loop: a thread that waits, and what it hears.

Knows nothing of adapters. A stream that breaks is begun again where it was; while it is broken, whoever relies on it
must look for himself (`lives`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from weft_registry.api import AliasMove, AliasNews, AliasWatch, RegistryApi
from weft_registry.errors import OffsetError, UnsupportedError, WeftError
from weft_registry.watching import HEARTBEAT_S

_log = logging.getLogger(__name__)
_LIVES_S = 1.5 * HEARTBEAT_S
"""A stream that has said nothing for so long is broken: heartbeats would have come."""
_LONGEST_RETRY_S = 30.0


class AliasStream:
    """Owns one watch and the thread that reads it. Used from one event loop."""

    def __init__(
        self, registry: RegistryApi, moved: Callable[[AliasMove], None], lost: Callable[[], None], retry_s: float
    ) -> None:
        """`moved` is called with every move, `lost` when moves may have been missed; both in the event loop."""
        self._registry, self._moved, self._lost, self._retry_s = registry, moved, lost, retry_s
        self._loop = asyncio.get_running_loop()
        self._heard_s = float("-inf")
        self._closed = threading.Event()
        self._watch: AliasWatch | None = None
        # A daemon: a registry that does not answer must not keep the process from ending.
        threading.Thread(target=self._follow, name="weft-aliases", daemon=True).start()

    @property
    def lives(self) -> bool:
        """Whether every move is heard of as it happens."""
        return time.monotonic() - self._heard_s < _LIVES_S

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        self._heard_s = float("-inf")
        if self._watch is not None:
            self._watch.close()

    def _follow(self) -> None:
        after = 0
        said = ""
        while not self._closed.is_set():
            try:
                self._watch = self._registry.watch_aliases(after=after)
                for news in self._watch:
                    after, said = news.sequence, ""
                    self._tell(news)
                return  # The registry was closed, or this.
            except UnsupportedError:
                _log.info("the registry is too old to tell of moved aliases: it is asked instead")
                return
            except OffsetError as error:
                # Another registry answers at this address, or an older state of this one.
                _log.warning("aliases are looked at anew: %s", error)
                after = 0
                self._call(self._lost)
            except WeftError as error:
                if said != str(error):
                    said = str(error)
                    _log.warning("no word of moved aliases, so the registry is asked instead: %s", said)
            self._closed.wait(min(self._retry_s, _LONGEST_RETRY_S))

    def _tell(self, news: AliasNews) -> None:
        def heard() -> None:
            self._heard_s = time.monotonic()
            if news.move is not None:
                self._moved(news.move)

        self._call(heard)

    def _call(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(lambda: None if self._closed.is_set() else what())
        except RuntimeError:
            self._closed.set()  # The loop has ended, and with it everybody who would listen.
