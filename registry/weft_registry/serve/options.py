"""What `weft registry serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft_registry.access.options import AccessOptions
from weft_registry.home import Home


@dataclass(frozen=True)
class RegistryServeOptions:
    """The settings of a registry that is served by itself."""

    host: str = "127.0.0.1"
    port: int = 50052
    """Of gRPC; 0 picks a free one."""
    http_port: int = 50080
    """Of the Hugging Face Hub face; 0 picks a free one."""
    grace_s: float = 10.0
    """How long a stopping server lets running transfers go on."""
    database: str | None = field(default=None, repr=False)
    """Where the catalog is, a URL as in `weft_registry.storage.Storage`; None is what WEFT_REGISTRY_DATABASE says, or a
    file in `home`. May hold a password."""
    blobs: str | None = None
    """Where the blobs are, a URL likewise; None is what WEFT_REGISTRY_BLOBS says, or a directory in `home`."""
    upstream: str | None = None
    """Another registry, HOST:PORT or grpcs://HOST:PORT, that this one mirrors; None mirrors none."""
    max_held_bytes: int | None = None
    """With `upstream`: how much of its blobs is held at most, the least recently read go first; None is no bound."""
    access: AccessOptions = field(default_factory=AccessOptions)
    """Who may do what, and whether it is encrypted."""
    home: Home = field(default_factory=Home.from_environment)
