"""Keeps a mirror's aliases where the upstream's are, so that whoever follows the mirror hears of moves, and so that the
last label seen is not old when the upstream goes away."""

from __future__ import annotations

import logging
import threading

from weft_registry.api import AliasMove, AliasWatch
from weft_registry.errors import OffsetError, UnavailableError, WeftError
from weft_registry.mirror.registry import MirrorRegistry

RETRY_S = 5.0
_log = logging.getLogger(__name__)


class Follower:
    """Owns a thread that follows the upstream's moves, from its start to `close`."""

    def __init__(self, registry: MirrorRegistry, retry_s: float = RETRY_S) -> None:
        self._registry, self._retry_s = registry, retry_s
        self._closed = threading.Event()
        self._watch: AliasWatch | None = None
        self._after = 0
        self._thread = threading.Thread(target=self._run, name="weft-follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._follow()
            except OffsetError:
                # Another registry answers there, or an older one: from now on, and everything once more.
                self._after = 0
            except UnavailableError as error:
                # Heard here first, where nobody asks.
                if not self._closed.is_set():
                    self._registry.upstream.failed(error.message)
            except WeftError as error:
                _log.warning("the upstream's aliases are not followed now: %s", error.message)
            except Exception:  # noqa: BLE001
                # A thread's own end would be noticed by nobody, and aliases would stay where they are.
                _log.exception("following the upstream's aliases failed unexpectedly")
            self._closed.wait(self._retry_s)

    def _follow(self) -> None:
        remote = self._registry.upstream.remote
        self._watch = remote.watch_aliases((), after=self._after)
        begun = self._after > 0
        for news in self._watch:
            if self._closed.is_set():
                return
            self._registry.upstream.answered()
            self._after = news.sequence
            if news.move is not None:
                self._apply(news.move)
            elif not begun:
                # From here on nothing is missed; what moved before is looked up.
                begun = True
                for adapter, alias in self._registry.known_aliases():
                    self._registry.refresh_alias(adapter, alias)

    def _apply(self, move: AliasMove) -> None:
        if not self._registry.holds(move.adapter):
            return
        try:
            self._registry.refresh_alias(move.adapter, move.alias)
        except WeftError as error:
            # A removed alias is not found, and that is what was to be known.
            _log.debug("%s:%s: %s", move.adapter, move.alias, error.message)
