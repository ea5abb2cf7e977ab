"""What a request named, resolved: one version, or several worn together. Knows neither memory nor engines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from weft_registry.composition import Part, composition_digest, describe
from weft_registry.reference import AdapterName
from weft_server.resolution import Resolved


@dataclass(frozen=True)
class Worn:
    """The versions that a request's references named, each with its weight; most often one with the weight 1.

    It is never resolved again: whatever an alias names later, rights are asked for this and this is loaded.
    """

    parts: tuple[Part, ...]
    """As they were named; at least one."""
    versions: tuple[Resolved, ...]
    """What each part named."""

    @cached_property
    def digest(self) -> str:
        """The identity of these versions, worn with these weights."""
        weighted = zip(self.versions, self.parts, strict=True)
        return composition_digest([(version.digest, part.weight) for version, part in weighted])

    @property
    def reference(self) -> str:
        """The parts as one string."""
        return describe(self.parts)

    @property
    def made_of(self) -> frozenset[AdapterName]:
        """The adapters that a fusion, or one of those worn together, is made of."""
        return frozenset().union(*(version.made_of for version in self.versions))

    @property
    def alone(self) -> bool:
        """Whether it is one version as it was published, and no composition."""
        return self.digest == self.versions[0].digest
