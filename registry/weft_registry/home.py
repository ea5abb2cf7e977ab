"""Where Weft keeps its files: WEFT_HOME, by default ~/.weft."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DATABASE_VARIABLE = "WEFT_REGISTRY_DATABASE"
"""Names the embedded registry's catalog where it is not a file under WEFT_HOME."""


@dataclass(frozen=True)
class Home:
    """The layout of WEFT_HOME. Nothing is created by asking for a path."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """WEFT_HOME, or ~/.weft."""
        return cls(Path(os.environ.get("WEFT_HOME") or Path.home() / ".weft").expanduser())

    @property
    def registry(self) -> Path:
        """The embedded registry: catalog and blobs."""
        return self.root / "registry"

    @property
    def bases(self) -> Path:
        """Imported base models, one directory each."""
        return self.root / "bases"

    @property
    def pulled(self) -> Path:
        """Artifacts pulled by a server, by digest."""
        return self.root / "pulled"

    @property
    def cache(self) -> Path:
        """Downloads and derived data that can be made again."""
        return self.root / "cache"
