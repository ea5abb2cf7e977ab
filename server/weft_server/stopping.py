"""Stop sequences over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Holds text back while it may be the beginning of a stop sequence.

    After a match nothing more is answered, and `matched` names the sequence.
    """

    def __init__(self, sequences: Sequence[str], *, include: bool) -> None:
        self._sequences = tuple(sequences)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can be answered now that `text` has come."""
        if not self._sequences:
            return text
        self._held += text
        found = min(((at, s) for s in self._sequences if (at := self._held.find(s)) >= 0), default=None)
        if found is not None:
            at, self.matched = found
            answer, self._held = self._held[: at + (len(self.matched) if self._include else 0)], ""
            return answer
        keep = max(_overlap(self._held, sequence) for sequence in self._sequences)
        answer, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return answer

    def flush(self) -> str:
        """What was held back when no more text comes."""
        answer, self._held = self._held, ""
        return answer


def _overlap(text: str, sequence: str) -> int:
    """Length of the longest end of `text` that begins `sequence` without being all of it."""
    return next((n for n in range(min(len(text), len(sequence) - 1), 0, -1) if text.endswith(sequence[:n])), 0)
