"""The one grammar for naming a version: `namespace/name[:tag-or-alias][@sha256:<hex>]`.

A bare `namespace/name` means `:latest`. `namespace/name@v3` is a spelling of `namespace/name:v3`. When both a label
and a digest are given the digest decides, and the label must agree with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError

LATEST = "latest"
_PART = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?")


@dataclass(frozen=True, order=True)
class AdapterName:
    """The name of an adapter, which has versions: `namespace/name`."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> AdapterName:
        """Parses `namespace/name`. Raises `InvalidInputError`."""
        namespace, slash, name = text.partition("/")
        if not slash:
            raise InvalidInputError(f"{text[:200]!r} is not an adapter name: expected NAMESPACE/NAME")
        for part, what in ((namespace, "namespace"), (name, "name")):
            check_name(part, what)
        return cls(namespace, name)


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `label` is a tag or an alias; `digest`, when given, decides."""

    adapter: AdapterName
    label: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        label = f":{self.label}" if self.label else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.adapter}{label}{digest}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parses a reference. Raises `InvalidInputError` that says which part is wrong."""
        head, at, tail = text.partition("@")
        digest: str | None = None
        if at:
            if tail.startswith("sha256:"):
                digest = digests.check(tail, f"reference {text[:200]!r}")
            elif ":" in head:
                raise InvalidInputError(f"reference {text[:200]!r}: both ':' and '@' carry a label; give one of them")
            else:
                head = f"{head}:{tail}"
        name, colon, label = head.partition(":")
        if colon:
            check_label(label, f"reference {text[:200]!r}")
        adapter = AdapterName.parse(name)
        return cls(adapter, label if colon else (None if digest else LATEST), digest)


def check_name(text: str, what: str = "name") -> str:
    """`text` if it can be a namespace or a name; raises `InvalidInputError` otherwise."""
    if not _PART.fullmatch(text) or ".." in text:
        raise InvalidInputError(
            f"{what} {text[:100]!r}: lower-case letters, digits, '.', '_' and '-', at most 96, starting and ending "
            "with a letter or digit, no '..'"
        )
    return text


def check_label(text: str, what: str = "tag or alias") -> str:
    """`text` if it can be a tag or an alias; raises `InvalidInputError` otherwise."""
    if not _LABEL.fullmatch(text) or ".." in text or text.startswith("sha256"):
        raise InvalidInputError(
            f"{what}: {text[:140]!r} is not a tag or alias: letters, digits, '.', '_' and '-', at most 128, no '..', "
            "not starting with 'sha256'"
        )
    return text
