"""The part of the embedded registry that is about signatures. It keeps them; whoever has the public key verifies."""

from __future__ import annotations

from sqlalchemy import Connection

from weft_registry import digest as digests
from weft_registry.api import Signature
from weft_registry.catalog import audit, records, signatures
from weft_registry.catalog.database import Catalog
from weft_registry.errors import ExhaustedError
from weft_registry.principal import Principal, Scope
from weft_registry.reference import Reference
from weft_registry.signing import bundle as bundles


class EmbeddedSignatures:
    """What `weft_registry.embedded.EmbeddedRegistry` does with signatures. Owns nothing."""

    _catalog: Catalog
    _principal: Principal

    def put_signature(self, reference: str, key_digest: str, bundle: bytes) -> Signature:
        """See `RegistryApi.put_signature`. Errors as for `PutSignature` in registry.proto."""
        parsed = Reference.parse(reference)
        if not self._principal.may(Scope.PUBLISH, parsed.adapter.namespace):
            self._principal.check_read(parsed.adapter)
            self._principal.check(Scope.PUBLISH, parsed.adapter.namespace)
        digests.check(key_digest, "key_digest")
        with self._catalog.write() as connection:
            version_id, digest = self._find(connection, parsed)
            bundles.check_subject(bundle, digest)
            others = [kept for kept in signatures.of_version(connection, version_id) if kept.key_digest != key_digest]
            if len(others) >= bundles.MAX_SIGNATURES:
                raise ExhaustedError(
                    f"{parsed.adapter}@{digest} has signatures by {len(others)} keys, the most there may be",
                    reason="TOO_MANY_SIGNATURES",
                )
            actor = self._principal.name
            kept = signatures.put(connection, version_id, key_digest, bundle, actor)
            subject = f"{parsed.adapter}@{digest}"
            audit.record(connection, actor, "sign", parsed.adapter.namespace, subject, {"key": key_digest})
            return kept

    def list_signatures(self, reference: str) -> list[Signature]:
        """See `RegistryApi.list_signatures`."""
        parsed = Reference.parse(reference)
        self._principal.check_read(parsed.adapter)
        with self._catalog.read() as connection:
            return signatures.of_version(connection, self._find(connection, parsed)[0])

    def _find(self, connection: Connection, reference: Reference) -> tuple[int, str]:
        """The row id and the digest of the version that a reference names."""
        readable = self._principal.readable
        digest = records.resolve(connection, reference, readable).digest
        version_id = records.find_digest(connection, records.adapter_id(connection, reference.adapter), digest)
        assert version_id is not None
        return version_id, digest
