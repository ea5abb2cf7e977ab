"""What `weft registry serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    home: Home = field(default_factory=Home.from_environment)
