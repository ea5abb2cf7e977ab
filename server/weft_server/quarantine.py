"""Adapters that are not served any more because of what they computed. Knows digests, not files, memory or engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from weft_registry.errors import PreconditionError


@dataclass(frozen=True)
class Quarantined:
    """One adapter under quarantine."""

    digest: str
    reference: str
    """The reference it was first asked for by."""
    kind: str
    since: datetime
    why: str

    @property
    def summary(self) -> str:
        """When and why, for a report."""
        return f"since {self.since:%Y-%m-%dT%H:%M:%SZ}: {self.why}"


class Quarantine:
    """Owns the records, for the life of the process. Lives in one event loop.

    An adapter whose numbers stopped being finite once will do so again: its requests are refused with the reason
    instead of being computed up to the same failure. Only a person lifts it, by unloading the adapter.
    """

    def __init__(self) -> None:
        self._records: dict[str, Quarantined] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Quarantined]:
        return iter(list(self._records.values()))

    def find(self, digest: str) -> Quarantined | None:
        """The record of an adapter, if it is under quarantine."""
        return self._records.get(digest)

    def add(self, digest: str, reference: str, kind: str, why: str) -> bool:
        """Puts an adapter under quarantine. False if it was already: the first reason stays."""
        if digest in self._records:
            return False
        self._records[digest] = Quarantined(digest, reference, kind, datetime.now(UTC), why)
        return True

    def lift(self, digest: str) -> bool:
        """Takes an adapter out of quarantine; whether it was in it."""
        return self._records.pop(digest, None) is not None

    def check(self, digest: str, reference: str) -> None:
        """Raises `PreconditionError` if the adapter of this digest is under quarantine."""
        record = self._records.get(digest)
        if record is not None:
            raise PreconditionError(
                f"{reference} ({digest}) is under quarantine {record.summary}; publish a mended version, or `weft "
                f"unload {reference}` lifts the quarantine and the next request loads it again",
                reason="QUARANTINED",
                metadata={"digest": digest, "since": f"{record.since:%Y-%m-%dT%H:%M:%SZ}", "why": record.why[:200]},
            )
