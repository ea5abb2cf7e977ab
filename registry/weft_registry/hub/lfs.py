"""Git LFS's batch protocol, for clients that send files by it: where to put objects, and the objects themselves.

Clients put an object without their token, so the address that they are given carries a signed permission: one object,
one adapter, one identity, for an hour. It is signed by a key of this process: after a restart a client asks again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, UnauthenticatedError, UnsupportedError
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName

MAX_OBJECTS = 1000
PERMIT_S = 3600.0
_OID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Permit:
    """What one address allows."""

    adapter: AdapterName
    oid: str
    size_bytes: int
    principal: Principal


class Permits:
    """Signs permissions and reads them back. Owns the key."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._key = secrets.token_bytes(32)
        self._now_s = now_s

    def sign(self, permit: Permit) -> str:
        """The permission as a word for an address."""
        principal = permit.principal
        document = [
            str(permit.adapter),
            permit.oid,
            permit.size_bytes,
            int(self._now_s() + PERMIT_S),
            [principal.name, sorted(principal.scopes), sorted(principal.namespaces)],
        ]
        said = json.dumps(document, separators=(",", ":")).encode()
        return _word(said) + "." + _word(self._mac(said))

    def read(self, word: str, adapter: AdapterName, oid: str) -> Permit:
        """The permission, if it is one for this object. Raises `UnauthenticatedError`."""
        said, _, mac = word.partition(".")
        data = _bytes(said)
        if not hmac.compare_digest(self._mac(data), _bytes(mac)):
            raise _no_permit()
        name, allowed, size, until, (who, scopes, namespaces) = json.loads(data)
        if (name, allowed) != (str(adapter), oid) or self._now_s() > until:
            raise _no_permit()
        scopes_found = frozenset(Scope(scope) for scope in scopes)
        return Permit(adapter, oid, size, Principal(who, scopes_found, frozenset(namespaces)))

    def _mac(self, said: bytes) -> bytes:
        return hmac.digest(self._key, said, hashlib.sha256)


def batch(
    registry: EmbeddedRegistry,
    principal: Principal,
    permits: Permits,
    adapter: AdapterName,
    origin: str,
    said: Mapping[str, Any],
) -> dict[str, Any]:
    """The answer to a batch request: for each object that is not here, where to put it.

    Raises `InvalidInputError` and `UnsupportedError` for what is no request to upload, and as `Workspaces.has`.
    """
    if said.get("operation") != "upload":
        raise UnsupportedError("operation: only 'upload': files are read by /NAMESPACE/NAME/resolve/REVISION/FILE")
    if said.get("hash_algo", "sha256") != "sha256":
        raise UnsupportedError("hash_algo: only sha256")
    transfers = said.get("transfers", ["basic"])
    if not isinstance(transfers, list) or "basic" not in transfers:
        raise UnsupportedError("transfers: only 'basic'")
    objects = said.get("objects")
    if not isinstance(objects, list) or len(objects) > MAX_OBJECTS:
        raise InvalidInputError(f"objects: expected a list of at most {MAX_OBJECTS}")
    answers = []
    for entry in objects:
        oid, size = check_object(entry)
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if not registry.workspaces.has(adapter, f"sha256:{oid}"):
            word = permits.sign(Permit(adapter, oid, size, principal))
            place = f"{origin}/{adapter}.git/info/lfs"
            answer["actions"] = {
                "upload": {"href": f"{place}/objects/{oid}?permit={word}", "expires_in": int(PERMIT_S)},
                "verify": {"href": f"{place}/verify"},
            }
        answers.append(answer)
    return {"transfer": "basic", "hash_algo": "sha256", "objects": answers}


def check_object(entry: Any) -> tuple[str, int]:
    """(oid, size in bytes) of an object that a request names. Raises `InvalidInputError`."""
    oid, size = (entry.get("oid"), entry.get("size")) if isinstance(entry, dict) else (None, None)
    if not isinstance(oid, str) or not _OID.fullmatch(oid) or type(size) is not int or not 0 <= size < 1 << 60:
        raise InvalidInputError("object: expected a sha256 of 64 digits as oid, and a size in bytes")
    return oid, size


def _word(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(word: str) -> bytes:
    try:
        return base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _no_permit() from None


def _no_permit() -> UnauthenticatedError:
    return UnauthenticatedError(
        "this address is no (more a) permission to send this object: ask for it again", reason="PERMIT_INVALID"
    )
