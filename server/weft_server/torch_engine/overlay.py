"""Merged weights as a value: a second set of kernels beside the base's, never in place of them.

Swapping an overlay in or out is one assignment between two steps. The base is never written, so unmerging is bit-exact
by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from weft_adapters.kinds.kind import Adapter, LinearSite


class MergedKernel(Protocol):
    """One site's merged weights, in the form that the decoder which made them computes with."""

    @property
    def size_bytes(self) -> int:
        """Bytes held beside the base's own."""
        ...


@dataclass(frozen=True, eq=False)
class Overlay:
    """One adapter merged into the base: kernels at the sites that it changes."""

    adapter: Adapter[Any]
    kernels: Mapping[LinearSite, MergedKernel]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes held beside the base."""
        return sum(kernel.size_bytes for kernel in self.kernels.values())
