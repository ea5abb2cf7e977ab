"""Everything that a server counts and holds, as one value at one moment: what GetStats answers and Prometheus reads.

The parts are asked, nothing is kept twice. It knows no protobuf and no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from weft_registry.composition import describe, parse_parts
from weft_registry.errors import UnavailableError
from weft_registry.reference import Reference
from weft_server.disk_cache import DiskCache
from weft_server.engine import Engine
from weft_server.recorder import RequestRecorder, RequestStats, ResidencyCounts
from weft_server.residency import Residency
from weft_server.residents import Resident, Tier
from weft_server.stats import EngineStats

BASE = "base"
OTHER = "other"
"""These stand where an adapter's name would; no adapter has such a name, for it would have a namespace."""


@dataclass(frozen=True)
class MemoryStats:
    """Bytes, and their limits."""

    base_bytes: int
    key_value_used_bytes: int
    key_value_limit_bytes: int
    adapter_bytes: int
    adapter_limit_bytes: int
    pack_bytes: int
    overlay_bytes: int
    overlay_limit_bytes: int
    disk_bytes: int
    """Of pulled artifacts, those of adapters in memory included."""
    disk_limit_bytes: int


@dataclass(frozen=True)
class TierStats:
    """The adapters whose nearest place this is."""

    adapters: int
    size_bytes: int


@dataclass(frozen=True)
class AdapterTokens:
    """What was generated through one adapter since it came into memory."""

    adapter: str
    """namespace/name, `BASE` or `OTHER`."""
    digest: str
    """Empty for those two."""
    generated_tokens: int


@dataclass(frozen=True)
class ServerStats:
    """One server at one moment."""

    started_at: datetime
    uptime_s: float
    requests: RequestStats
    engine: EngineStats
    residency: ResidencyCounts
    resident: tuple[Resident, ...]
    """As `Residency.resident`."""
    tiers: Mapping[Tier, TierStats]
    """Of those that hold any."""
    quarantined: int
    merged_digest: str
    """Empty: none."""
    overlays: int
    """Merged weights kept ready, those in use included."""
    memory: MemoryStats
    adapter_tokens: tuple[AdapterTokens, ...]
    """Of adapters in memory, of the base, and of all the others together."""


class Statistics:
    """Asks the parts of one server. Lives in the event loop it was made in."""

    def __init__(
        self, engine: Engine, residency: Residency, requests: RequestRecorder, *, overlay_limit_bytes: int
    ) -> None:
        self._engine = engine
        self._residency = residency
        self._requests = requests
        self._overlay_limit_bytes = overlay_limit_bytes
        self._loop = asyncio.get_running_loop()
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()

    def snapshot(self) -> ServerStats:
        """What there is to say now. Takes well under a millisecond, and no step waits for it."""
        engine, residency = self._engine.stats(), self._residency
        resident = tuple(residency.resident())
        merged, overlays = self._engine.merged, self._engine.overlays
        return ServerStats(
            started_at=self._started_at,
            uptime_s=time.monotonic() - self._started,
            requests=self._requests.snapshot(),
            engine=engine,
            residency=residency.recorder.snapshot(),
            resident=resident,
            tiers=_tiers(resident, residency.disk),
            quarantined=residency.quarantined_count,
            merged_digest=merged.digest if merged else "",
            overlays=len(overlays),
            memory=MemoryStats(
                base_bytes=self._engine.base_bytes,
                key_value_used_bytes=engine.blocks_used * engine.block_bytes,
                key_value_limit_bytes=engine.blocks_total * engine.block_bytes,
                adapter_bytes=residency.resident_bytes,
                adapter_limit_bytes=residency.limit_bytes,
                pack_bytes=engine.pack_bytes,
                overlay_bytes=sum(overlays.values()),
                overlay_limit_bytes=self._overlay_limit_bytes,
                disk_bytes=residency.disk.size_bytes,
                disk_limit_bytes=residency.disk.limit_bytes,
            ),
            adapter_tokens=_adapter_tokens(engine, resident),
        )

    def ask(self, timeout_s: float = 5.0) -> ServerStats:
        """`snapshot`, for another thread. Raises `UnavailableError` when the event loop has no time, or has ended."""

        async def snapshot() -> ServerStats:
            return self.snapshot()

        coroutine = snapshot()
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)
        except (TimeoutError, CancelledError) as error:
            raise UnavailableError(f"the server did not say within {timeout_s:g} s how it is") from error
        except RuntimeError as error:
            coroutine.close()
            raise UnavailableError("the server is stopping") from error


def adapter_name(resident: Resident) -> str:
    """namespace/name, whatever alias or digest it was asked for by; of adapters worn together each part's, with its
    weight."""
    parts = parse_parts(resident.reference)
    return describe([replace(part, reference=str(Reference.parse(part.reference).adapter)) for part in parts])


def _tiers(resident: tuple[Resident, ...], disk: DiskCache) -> dict[Tier, TierStats]:
    in_memory = {adapter.digest for adapter in resident}
    places = [(adapter.tier, adapter.size_bytes) for adapter in resident]
    places += [(Tier.DISK, pulled.size_bytes) for pulled in disk.artifacts() if pulled.digest not in in_memory]
    adapters, size_bytes = Counter[Tier](), Counter[Tier]()
    for tier, size in places:
        adapters[tier] += 1
        size_bytes[tier] += size
    return {tier: TierStats(adapters[tier], size_bytes[tier]) for tier in Tier if tier in adapters}


def _adapter_tokens(engine: EngineStats, resident: tuple[Resident, ...]) -> tuple[AdapterTokens, ...]:
    tokens = engine.tokens_by_adapter
    named = [AdapterTokens(adapter_name(r), r.digest, tokens.get(r.digest, 0)) for r in resident]
    base = AdapterTokens(BASE, "", tokens.get("", 0))
    rest = engine.generated_tokens - base.generated_tokens - sum(entry.generated_tokens for entry in named)
    return (*named, base, AdapterTokens(OTHER, "", rest))
