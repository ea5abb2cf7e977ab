"""Passwords in URLs, which no message may show."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r":[^@]*@")


def masked(url: str) -> str:
    """A URL, or what was taken for one, as a message may show it: short, and `***` where a password may be."""
    return repr(_PASSWORD.sub(":***@", url)[:100])
