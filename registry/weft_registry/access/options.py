"""What a server can be told about who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft_registry.errors import InvalidInputError
from weft_registry.principal import LOCAL, NOBODY, Principal, anonymous_reader

if TYPE_CHECKING:
    from weft_registry.wire.tls import TlsFiles


@dataclass(frozen=True)
class AccessOptions:
    """Tokens and TLS of one server. Raises `InvalidInputError` for settings that contradict each other."""

    required: bool = False
    """Every call needs a token. Without it everybody who reaches the server may do everything."""
    anonymous_read: bool = False
    """Who says no token may read, and nothing else."""
    tls: TlsFiles | None = None
    """None serves in the clear."""

    def __post_init__(self) -> None:
        if self.anonymous_read and not self.required:
            raise InvalidInputError(
                "--anonymous-read: without --auth everybody may do everything: add --auth, or leave it out"
            )

    @property
    def anonymous(self) -> Principal:
        """Who a call without a token comes from."""
        if not self.required:
            return LOCAL
        return anonymous_reader() if self.anonymous_read else NOBODY
