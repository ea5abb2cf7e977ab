"""Keeps the files of one load together when an alias moves in the middle of it.

PEFT asks for each file of an adapter by the alias again, configuration first, and names its process in the user agent
(`session_id/...`, which transformers gives it). So the configuration decides: what the same process then asks of the
same alias is answered from the version that its configuration came from.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from weft_registry.reference import AdapterName

MAX_PINS = 4096
PIN_S = 900.0
"""A load may take so long between its configuration and its last file."""
_SESSION = re.compile(r"(?:^|[;\s])session_id/([0-9a-zA-Z-]{8,64})(?:$|[;\s])")


@dataclass(frozen=True)
class PinKey:
    """Whose load, and of what."""

    session: str
    adapter: AdapterName
    label: str


def session_of(user_agent: str) -> str | None:
    """The process that a user agent names, if it names one."""
    found = _SESSION.search(user_agent)
    return found[1] if found else None


class Pins:
    """Owns the pins of one event loop, at most `MAX_PINS`; the oldest go first."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._pins: OrderedDict[PinKey, tuple[str, float]] = OrderedDict()

    def pin(self, key: PinKey, digest: str) -> None:
        """From now on this load gets files of `digest`."""
        self._pins.pop(key, None)
        self._pins[key] = (digest, self._now_s() + PIN_S)
        while len(self._pins) > MAX_PINS:
            self._pins.popitem(last=False)

    def get(self, key: PinKey) -> str | None:
        """The digest that this load gets files of; None when no load is under way."""
        digest, until_s = self._pins.get(key, ("", 0.0))
        return digest if digest and self._now_s() < until_s else None
