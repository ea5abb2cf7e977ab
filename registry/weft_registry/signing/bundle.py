"""What a signature says it was made over, read without checking it: no cryptography, no packages of others.

A signature is a Sigstore bundle, as the `model-signing` package makes it with a key: JSON, a DSSE envelope, and in it
an in-toto statement that lists files by digest. Ours list the files of one version, its manifest included; and the
digest of the manifest is the digest of the version.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError

MAX_BYTES = 256 << 10
"""A bundle names at most 65 files, and has 15 KiB then."""
MAX_SIGNATURES = 32
"""On one version: by so many keys. All of them fit in one answer."""
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


def signed_digest(bundle: bytes) -> str:
    """The digest of the version that a bundle says it signs. Whether it does is another question.

    Raises `InvalidInputError` (`BAD_SIGNATURE`) for what is no such bundle.
    """
    if len(bundle) > MAX_BYTES:
        raise _bad(f"{len(bundle)} bytes; at most {MAX_BYTES}")
    document = _object(bundle, "it")
    material = document.get("verificationMaterial")
    key = material.get("publicKey") if isinstance(material, dict) else None
    if not isinstance(key, dict) or not isinstance(key.get("hint"), str) or not key["hint"]:
        raise _bad("it names no public key: only signatures made with a key are kept here")
    envelope = document.get("dsseEnvelope")
    if not isinstance(envelope, dict) or not isinstance(envelope.get("payload"), str):
        raise _bad("it has no DSSE envelope with a payload")
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"its payload is not base64 ({error})") from error
    statement = _object(payload, "its payload")
    if statement.get("_type") != _STATEMENT or statement.get("predicateType") != _PREDICATE:
        raise _bad("its payload is no statement of model-signing 1.0")
    predicate = statement.get("predicate")
    resources = predicate.get("resources") if isinstance(predicate, dict) else None
    if not isinstance(resources, list) or not all(isinstance(resource, dict) for resource in resources):
        raise _bad("its statement lists no files")
    found = [resource for resource in resources if resource.get("name") == artifact.MANIFEST]
    if len(found) != 1 or found[0].get("algorithm") != "sha256":
        raise _bad(f"its statement does not list {artifact.MANIFEST} with one sha256")
    digest = f"sha256:{found[0].get('digest')}"
    if not digests.is_digest(digest):
        raise _bad(f"its statement has {digest[:80]!r} as the digest of {artifact.MANIFEST}")
    return digest


def check_subject(bundle: bytes, digest: str) -> None:
    """Raises `InvalidInputError` (`BAD_SIGNATURE`) unless a bundle says that it signs the version with this digest."""
    signed = signed_digest(bundle)
    if signed != digest:
        raise _bad(f"it signs the version {signed}, not {digest}: sign this version (`weft sign`)")


def _object(data: bytes, what: str) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{what} is not JSON ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise _bad(f"{what} is not a JSON object")
    return document


def _bad(why: str) -> InvalidInputError:
    return InvalidInputError(f"signature: {why}", reason="BAD_SIGNATURE")
