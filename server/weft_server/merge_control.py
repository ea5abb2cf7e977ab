"""Who is merged: a person's word first, the policy's after it. Every switch of a server passes through here, one at a
time; what a switch is, residency and the engine know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from weft_registry.errors import ExhaustedError, InvalidInputError, WeftError
from weft_registry.reference import Reference
from weft_server.engine import Engine, MergeOutcome
from weft_server.merge_policy import MergePolicy, MergeRule, Switch
from weft_server.options import ServeOptions
from weft_server.residency import Residency
from weft_server.residents import Resident

_log = logging.getLogger(__name__)
# One slow stream. With less, steps are too few for merging to matter.
_MIN_TOKENS_PER_S = 10
_TICKS_PER_WINDOW = 10
_LONGEST_TICK_S = 1.0


def merge_rule(options: ServeOptions) -> MergeRule | None:
    """The policy that the options ask for; None for none. Raises `InvalidInputError` for settings that mean nothing, or
    that nothing would heed."""
    changed = [
        flag
        for flag, field in (("--merge-share", "merge_share"), ("--merge-window", "merge_window_s"))
        if getattr(options, field) != getattr(ServeOptions, field)
    ]
    if options.merge_policy == "off":
        if changed:
            raise InvalidInputError(f"{' and '.join(changed)}: without effect unless --merge-policy is auto")
        return None
    if options.merge_policy != "auto":
        raise InvalidInputError(f"--merge-policy {options.merge_policy}: expected off or auto")
    window_s = options.merge_window_s
    return MergeRule(
        share=options.merge_share,
        window_s=window_s,
        min_tokens=max(1, round(_MIN_TOKENS_PER_S * window_s)),
        min_interval_s=window_s,
    )


class MergeControl:
    """Owns the policy, and the order of switches. Lives in one event loop.

    Without a rule nothing is merged unless a person asks.
    """

    def __init__(
        self,
        residency: Residency,
        engine: Engine,
        rule: MergeRule | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._residency = residency
        self._engine = engine
        self._rule = rule
        self._clock = clock
        self._policy = None if rule is None else MergePolicy(rule)
        self._mergeable = frozenset(engine.info.mergeable_kinds)
        self._switching = asyncio.Lock()
        self._seen: Mapping[str, int] = {}
        self._since: dict[str, float] = {}
        """When each candidate came into memory."""

    async def merge(self, reference: str) -> tuple[str, MergeOutcome]:
        """A person merges an adapter: the policy rests until a person unmerges it. Raises as `Residency.merge`."""
        async with self._switching:
            digest, outcome = await self._residency.merge(reference)
            if self._policy is not None:
                self._policy.pin(self._clock())
            return digest, outcome

    async def unmerge(self) -> tuple[str, float]:
        """A person unmerges whoever is merged, by whomever: the policy does not merge that adapter again before the
        traffic has changed. Raises as `Residency.unmerge`."""
        async with self._switching:
            digest, switch_s = await self._residency.unmerge()
            if self._policy is not None:
                self._policy.unpin(self._clock(), digest)
            return digest, switch_s

    async def run(self) -> None:
        """Follows the policy until it is cancelled; returns at once without a rule."""
        if self._rule is None:
            return
        interval_s = min(_LONGEST_TICK_S, self._rule.window_s / _TICKS_PER_WINDOW)
        while True:
            await asyncio.sleep(interval_s)
            await self.tick()

    async def tick(self) -> Switch | None:
        """Tells the policy what was generated since the last tick, and does what it decides; answers what was done."""
        if self._policy is None:
            return None
        now_s = self._clock()
        tokens = dict(self._engine.stats().tokens_by_adapter)
        # A count that went down was started again.
        grown = {d: n - before if n >= (before := self._seen.get(d, 0)) else n for d, n in tokens.items()}
        self._seen = tokens
        self._policy.observe(now_s, grown)
        async with self._switching:
            candidates = self._candidates(self._policy)
            merged = self._engine.merged
            merged_digest = merged.digest if merged else None
            switch = self._policy.decide(now_s, merged=merged_digest, candidates=candidates)
            if switch is None:
                return None
            if switch.digest is None:
                try:
                    await self._residency.unmerge()
                except WeftError as error:
                    # Residency itself unmerges an adapter whose numbers are no longer finite, and may have just now.
                    if error.reason != "NOT_MERGED":
                        _log.warning("%s was not unmerged: %s", merged_digest, error)
                self._policy.switched(now_s)
                _log.info("unmerged %s: %.0f%% of the tokens are left to it", merged_digest, 100 * switch.share)
                return switch
            done = await self._merge(now_s, candidates[switch.digest], switch, merged_digest)
            return switch if done else None

    def _candidates(self, policy: MergePolicy) -> dict[str, Resident]:
        """Who may be merged. An adapter that has come into memory again is made known to the policy."""
        found = {r.digest: r for r in self._residency.resident() if r.kind in self._mergeable and not r.quarantined}
        for digest, resident in found.items():
            if self._since.get(digest) != resident.since:
                policy.reloaded(digest)
        self._since = {digest: resident.since for digest, resident in found.items()}
        return found

    async def _merge(self, now_s: float, resident: Resident, switch: Switch, merged_digest: str | None) -> bool:
        assert self._policy is not None
        # By digest: what the reference named when it was asked for may have moved.
        reference = f"{Reference.parse(resident.reference).adapter}@{resident.digest}"
        try:
            _, outcome = await self._residency.merge(reference)
        except (WeftError, RuntimeError, MemoryError) as error:
            # torch says RuntimeError when an allocation fails. Serving goes on as it was.
            full = isinstance(error, ExhaustedError) and error.reason == "OVERLAY_MEMORY"
            self._policy.failed(now_s, resident.digest, beside=merged_digest if full else None)
            _log.warning("%s has %.0f%% of the tokens but was not merged: %s", reference, 100 * switch.share, error)
            return False
        self._policy.switched(now_s)
        how = "was kept ready" if outcome.hot else f"built in {outcome.build_s:.2f} s"
        _log.info("merged %s, which has %.0f%% of the tokens (%s)", reference, 100 * switch.share, how)
        return True
