"""Where adapters are, as reports say it. Knows nothing of how they got there."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass

from weft_registry import artifact
from weft_registry.errors import WeftError
from weft_registry.manifest import Manifest
from weft_server.disk_cache import DiskCache
from weft_server.quarantine import Quarantined


class Tier(enum.StrEnum):
    """Where an adapter is; the first two are ready to compute with."""

    DEVICE = "device"
    """Bound, in the memory of an accelerator."""
    HOST = "host"
    """Bound, in the machine's memory: where the engine computes on the CPU."""
    DISK = "disk"
    """Pulled and verified; the next request binds it."""


@dataclass(frozen=True)
class Resident:
    """One adapter, for a report."""

    reference: str
    digest: str
    kind: str
    size_bytes: int
    leases: int
    merged: bool
    served: int
    idle_s: float
    tier: Tier
    hot: bool = False
    """Its merged weights are kept ready, or in use."""
    since: float = 0.0
    """When it came into memory, by the monotonic clock; 0 if it is not there."""
    quarantined: str = ""
    """When and why it was put under quarantine; empty if it is not."""
    reload_problem: str = ""
    """Why it is still served although its alias has moved on; empty if it has not."""


def from_quarantine(record: Quarantined) -> Resident:
    """An adapter under quarantine that is not in memory."""
    return Resident(
        reference=record.reference,
        digest=record.digest,
        kind=record.kind,
        size_bytes=0,
        leases=0,
        merged=False,
        served=0,
        idle_s=0.0,
        tier=Tier.DISK,
        quarantined=record.summary,
    )


def from_disk(disk: DiskCache) -> list[Resident]:
    """What lies on disk, most recently used first. Reads a manifest each: not for the event loop."""
    now, found = time.time(), []
    for pulled in disk.artifacts():
        try:
            manifest = Manifest.parse((disk.path(pulled.digest) / artifact.MANIFEST).read_bytes())
            name, kind = manifest.name, manifest.kind
        except (OSError, WeftError):
            # Removed, or damaged, meanwhile: the next load says what is wrong, and mends it.
            name, kind = "?", "?"
        found.append(
            Resident(
                reference=name,
                digest=pulled.digest,
                kind=kind,
                size_bytes=pulled.size_bytes,
                leases=0,
                merged=False,
                served=0,
                idle_s=max(0.0, now - pulled.last_used),
                tier=Tier.DISK,
            )
        )
    return found
