"""When to merge an adapter without being asked: a rule over tokens and time.

Merging pays when one adapter has most of the rows of most steps, and costs a second product per site when it has not.
The policy is fed with what each adapter generated, and says which switch is due. It has no clock, no engine and no
adapters: times are the caller's, in seconds that only grow, and adapters are digests.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from weft_registry.errors import InvalidInputError


@dataclass(frozen=True)
class MergeRule:
    """The thresholds. Raises `InvalidInputError` for one that means nothing."""

    share: float = 0.8
    """The share of the window's tokens from which an adapter is merged."""
    hysteresis: float = 0.2
    """How far below `share` the merged adapter must fall before it is unmerged."""
    window_s: float = 10.0
    """The time over which shares are taken."""
    min_tokens: int = 256
    """With fewer tokens in the window no share is believed."""
    min_interval_s: float = 10.0
    """Between two switches, whoever made the first."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InvalidInputError(f"--merge-share {self.share:g}: expected a share between 0 and 1")
        if not 0 <= self.hysteresis <= 1:
            raise InvalidInputError(f"hysteresis {self.hysteresis:g}: expected a share between 0 and 1")
        if not self.window_s > 0:
            raise InvalidInputError(f"--merge-window {self.window_s:g}: expected a positive number of seconds")
        if self.min_tokens < 1 or self.min_interval_s < 0:
            raise InvalidInputError(
                f"min_tokens {self.min_tokens}, min_interval_s {self.min_interval_s:g}: expected at least 1 token, and "
                "no negative time"
            )

    @property
    def leave_share(self) -> float:
        """The share below which the merged adapter is unmerged."""
        return max(0.0, self.share - self.hysteresis)


@dataclass(frozen=True)
class Switch:
    """What is to be done between the next two steps."""

    digest: str | None
    """The adapter to merge, in place of any other; None: unmerge."""
    share: float
    """Of the window's tokens: what this adapter has, or what the one to be unmerged is left with."""


class MergePolicy:
    """Owns the window's counts, the time of the last switch, and whom not to merge. One caller at a time.

    People come first. What a person merges stays merged until a person unmerges it; what a person unmerges is not
    merged again by the policy until its share of the tokens has once been below the lower threshold.
    """

    def __init__(self, rule: MergeRule) -> None:
        self._rule = rule
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()
        self._window: Counter[str] = Counter()
        self._since_s: float | None = None
        """When the watch began."""
        self._switched_s: float | None = None
        self._failed: dict[str, set[str | None]] = {}
        """Adapters whose merging failed, each with who was merged at the time; None: it fails beside anyone."""
        self._dropped: set[str] = set()
        """Adapters that a person unmerged and whose share has not been low since."""
        self._pinned = False

    @property
    def paused(self) -> bool:
        """Whether a person's merge is in force."""
        return self._pinned

    def observe(self, now_s: float, tokens: Mapping[str, int]) -> None:
        """Adds what was generated since the last call, by digest; the base's own tokens under any other key."""
        if self._since_s is None:
            self._since_s = now_s
        counts = {digest: count for digest, count in tokens.items() if count}
        if counts:
            self._samples.append((now_s, counts))
            self._window.update(counts)

    def decide(self, now_s: float, *, merged: str | None, candidates: Collection[str]) -> Switch | None:
        """The switch that is due, or None.

        `merged` is the digest that is merged now; `candidates` are those in memory that can be merged. An adapter that
        is not among them is forgotten: when it comes back it may be tried again.
        """
        self._expire(now_s)
        self._failed = {digest: beside for digest, beside in self._failed.items() if digest in candidates}
        total = self._window.total()
        believed = total >= self._rule.min_tokens and self._watched(now_s, self._since_s)
        if believed:
            self._dropped = {digest for digest in self._dropped if self._share(digest) >= self._rule.leave_share}
        # What a person merged may have been unmerged for its own faults; then nothing is left to protect.
        self._pinned = self._pinned and merged is not None
        if self._pinned or self._too_soon(now_s):
            return None
        if believed and total:
            top = max(self._window, key=lambda digest: (self._window[digest], digest == merged))
            wanted = self._share(top) >= self._rule.share and top in candidates and not self._barred(top, merged)
            kept = merged is not None and self._share(merged) >= self._rule.leave_share
            if wanted and top != merged and not kept:
                return Switch(top, self._share(top))
            if merged is not None and not kept:
                return Switch(None, self._share(merged))
        elif merged is not None and not self._window[merged] and self._watched(now_s, self._switched_s):
            # Nothing of it for a whole window: it only keeps memory from others, who may be waiting for that memory.
            return Switch(None, 0.0)
        return None

    def switched(self, now_s: float) -> None:
        """The switch took place."""
        self._switched_s = now_s

    def failed(self, now_s: float, digest: str, *, beside: str | None = None) -> None:
        """The adapter could not be merged, and is not tried again until it is reloaded.

        With `beside` there was no room next to that merged adapter's weights: once they are gone it may be tried again.
        """
        self._failed.setdefault(digest, set()).add(beside)
        self._switched_s = now_s

    def reloaded(self, digest: str) -> None:
        """The adapter is another object under the same digest: whatever made merging fail may be gone."""
        self._failed.pop(digest, None)

    def pin(self, now_s: float) -> None:
        """A person merged an adapter: the policy rests until `unpin`."""
        self._pinned = True
        self._switched_s = now_s

    def unpin(self, now_s: float, digest: str) -> None:
        """A person unmerged this adapter, whoever had merged it."""
        self._pinned = False
        self._dropped.add(digest)
        self._switched_s = now_s

    def _share(self, digest: str) -> float:
        total = self._window.total()
        return self._window[digest] / total if total else 0.0

    def _barred(self, digest: str, merged: str | None) -> bool:
        beside = self._failed.get(digest, ())
        return digest in self._dropped or None in beside or merged in beside

    def _watched(self, now_s: float, since_s: float | None) -> bool:
        return since_s is not None and now_s - since_s >= self._rule.window_s

    def _too_soon(self, now_s: float) -> bool:
        return self._switched_s is not None and now_s - self._switched_s < self._rule.min_interval_s

    def _expire(self, now_s: float) -> None:
        while self._samples and now_s - self._samples[0][0] >= self._rule.window_s:
            _, counts = self._samples.popleft()
            for digest, count in counts.items():
                self._window[digest] -= count
                if not self._window[digest]:
                    del self._window[digest]
