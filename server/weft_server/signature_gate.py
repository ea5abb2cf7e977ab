"""`--require-signature`: only what one of some keys has signed is loaded. Knows nothing of engines and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weft_registry.api import RegistryApi, Version
from weft_registry.signing.keys import PublicKey, needs_extra, read_public


class SignatureGate:
    """Owns the keys, read once when the server starts: a file that changes later lets nobody in."""

    def __init__(self, keys: Sequence[Path]) -> None:
        """Raises `InvalidInputError` or `NotFoundError` for a file that is no public key, `UnsupportedError` without
        the extra: at start-up, not at the first request. No `keys` let everything pass."""
        self._keys: tuple[PublicKey, ...] = tuple(read_public(key) for key in keys)
        if keys:
            with needs_extra():
                import model_signing.verifying  # noqa: F401

    def check(self, registry: RegistryApi, version: Version) -> None:
        """Raises `PreconditionError` (`SIGNATURE_REQUIRED`) for a version that none of the keys has signed, and what
        asking the registry raises. Blocks."""
        if self._keys:
            from weft_registry.signing.sign import require

            require(registry, version, self._keys)
