"""Signatures: they prove a version's digest, stay outside of it, and tampering with anything they cover shows."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.registry.keys import make_keys
from tests.registry.lab import serving
from weft_registry import digest as digests
from weft_registry import transfer
from weft_registry.api import RegistryApi, Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnauthenticatedError,
)
from weft_registry.principal import Principal, Scope, anonymous_reader
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.signing import bundle as bundles
from weft_registry.signing.keys import PublicKey, digest_of_private, read_public
from weft_registry.signing.sign import require, sign, verify

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")


@pytest.fixture
def version(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> Version:
    return transfer.push(registry, new_artifact(), NAME, tags=["v1"]).version


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, PublicKey]:
    private, public = make_keys(tmp_path)
    return private, read_public(public)


def put(registry: RegistryApi, version: Version, private: Path) -> None:
    reference = f"{version.adapter}@{version.digest}"
    registry.put_signature(reference, digest_of_private(private), sign(version, private))


def test_a_signature_is_kept_beside_the_version_and_proves_it(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey]
) -> None:
    private, public = keys
    put(registry, version, private)
    assert digest_of_private(private) == public.digest
    (kept,) = registry.list_signatures("acme/topics:v1")
    assert (kept.key_digest, kept.added_by) == (public.digest, "local")
    assert bundles.signed_digest(kept.bundle) == version.digest
    assert require(registry, version, [public]) == public
    assert registry.resolve("acme/topics:v1") == version, "a signature is no part of what it signs"
    (entry,) = [entry for entry in registry.audit_entries() if entry.action == "sign"]
    assert entry.subject == f"acme/topics@{version.digest}"


def test_signatures_travel_over_grpc(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey]
) -> None:
    private, public = keys
    with serving(registry) as target:
        remote = RemoteRegistry(target)
        try:
            put(remote, version, private)
            assert remote.list_signatures("acme/topics:v1") == registry.list_signatures("acme/topics:v1")
            assert require(remote, version, [public]) == public
            with pytest.raises(NotFoundError):
                remote.list_signatures("acme/topics:v2")
            with pytest.raises(InvalidInputError, match="is not JSON"):
                remote.put_signature("acme/topics:v1", public.digest, b"no bundle")
        finally:
            remote.close()


def test_stock_model_signing_accepts_the_pulled_directory_and_notices_a_changed_file(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    private, public = keys
    transfer.pull(registry, version, tmp_path / "pulled")
    (tmp_path / "bundle.json").write_bytes(sign(version, private))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(tmp_path / "pulled")]
    command += ["--signature", str(tmp_path / "bundle.json"), "--public_key", str(public.path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    card = tmp_path / "pulled" / "README.md"
    card.write_text(card.read_text() + "more")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "README.md" in ran.stdout + ran.stderr


def test_what_stock_model_signing_signed_is_accepted(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    private, public = keys
    transfer.pull(registry, version, tmp_path / "pulled")
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(tmp_path / "pulled")]
    command += ["--signature", str(tmp_path / "stock.sig"), "--private_key", str(private)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    verify(version, (tmp_path / "stock.sig").read_bytes(), public)


def test_another_key_another_version_and_a_cut_bundle_prove_nothing(
    registry: EmbeddedRegistry,
    version: Version,
    keys: tuple[Path, PublicKey],
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    private, public = keys
    other_private, other_public = make_keys(tmp_path, "other")
    other = transfer.push(registry, new_artifact(seed=1), NAME).version
    bundle = sign(version, private)
    verify(version, bundle, public)
    with pytest.raises(InvalidInputError, match="does not hold"):
        verify(version, bundle, read_public(other_public))
    with pytest.raises(InvalidInputError, match="it signs the version"):
        verify(other, bundle, public)
    with pytest.raises(InvalidInputError, match="not JSON"):
        verify(version, bundle[: len(bundle) // 2], public)
    # By the right key under a wrong name, or by a wrong key under the right one: both are looked at, and refused.
    registry.put_signature(f"acme/topics@{version.digest}", public.digest, sign(version, other_private))
    with pytest.raises(PreconditionError, match="does not hold") as caught:
        require(registry, version, [public])
    assert caught.value.reason == "SIGNATURE_REQUIRED"


def test_every_byte_of_the_signed_statement_counts(version: Version, keys: tuple[Path, PublicKey]) -> None:
    """A file's digest changed in the statement, the signature left as it was; and the signature changed."""
    private, public = keys
    document = json.loads(sign(version, private))
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    weights = next(r for r in statement["predicate"]["resources"] if r["name"].endswith(".safetensors"))
    weights["digest"] = "0" * 64
    forged = json.loads(json.dumps(document))
    forged["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    with pytest.raises(InvalidInputError, match="does not hold"):
        verify(version, json.dumps(forged).encode(), public)
    broken = json.loads(json.dumps(document))
    raw = bytearray(base64.b64decode(broken["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    broken["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(bytes(raw)).decode()
    with pytest.raises(InvalidInputError, match="does not hold"):
        verify(version, json.dumps(broken).encode(), public)


def test_a_changed_manifest_is_not_the_version_that_was_signed(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey]
) -> None:
    private, public = keys
    put(registry, version, private)
    changed = version.manifest_bytes.replace(b'"license":"apache-2.0"', b'"license":"other-2.0"')
    assert changed != version.manifest_bytes
    lying = replace(version, manifest_bytes=changed)
    with pytest.raises(CorruptionError, match="has the digest"):
        require(registry, lying, [public])
    consistent = replace(lying, digest=digests.of_bytes(changed))
    with pytest.raises(InvalidInputError, match="it signs the version"):
        verify(consistent, sign(version, private), public)


def test_without_a_signature_by_one_of_the_keys_it_says_what_to_do(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    _, public = keys
    with pytest.raises(
        PreconditionError, match=r"no signature in the registry.*weft sign acme/topics@sha256"
    ) as caught:
        require(registry, version, [public])
    assert caught.value.metadata["digest"] == version.digest
    other, _ = make_keys(tmp_path, "other")
    put(registry, version, other)
    with pytest.raises(PreconditionError, match="1 signatures, by other keys"):
        require(registry, version, [public])


def test_the_key_is_what_its_file_held_when_it_was_read(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    """Whoever can write the file later cannot let their own signatures in."""
    private, public = keys
    other_private, other_public = make_keys(tmp_path, "other")
    public.path.write_bytes(other_public.read_bytes())
    with pytest.raises(InvalidInputError, match="does not hold"):
        verify(version, sign(version, other_private), public)
    verify(version, sign(version, private), public)


def test_a_registry_keeps_only_what_says_that_it_signs_this_version(
    registry: EmbeddedRegistry,
    version: Version,
    keys: tuple[Path, PublicKey],
    new_artifact: NewArtifact,
) -> None:
    private, public = keys
    other = transfer.push(registry, new_artifact(seed=1), NAME).version
    bundle = sign(version, private)
    document = json.loads(bundle)
    envelope = document["dsseEnvelope"]
    no_key = {**document, "verificationMaterial": {}}
    not_base64 = {**document, "dsseEnvelope": {**envelope, "payload": "***"}}
    no_statement = {**document, "dsseEnvelope": {**envelope, "payload": base64.b64encode(b"{}").decode()}}
    bad = [b"", b"[]", b"\xff", b"[" * 100_000, *(json.dumps(d).encode() for d in (no_key, not_base64, no_statement))]
    for wrong in (*bad, b" " * (bundles.MAX_BYTES + 1), sign(other, private)):
        with pytest.raises(InvalidInputError) as caught:
            registry.put_signature("acme/topics:v1", public.digest, wrong)
        assert caught.value.reason == "BAD_SIGNATURE"
    with pytest.raises(InvalidInputError, match="key_digest"):
        registry.put_signature("acme/topics:v1", "sha256:short", bundle)
    assert registry.list_signatures("acme/topics:v1") == []


def test_a_second_signature_by_the_same_key_takes_the_place_of_the_first(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    private, public = keys
    for _ in range(2):
        put(registry, version, private)
    assert [kept.key_digest for kept in registry.list_signatures("acme/topics")] == [public.digest]
    bundle = sign(version, private)
    for number in range(bundles.MAX_SIGNATURES - 1):
        registry.put_signature("acme/topics", f"sha256:{number:064x}", bundle)
    with pytest.raises(ExhaustedError):
        registry.put_signature("acme/topics", "sha256:" + "f" * 64, bundle)
    put(registry, version, private)


def test_signing_needs_the_right_to_publish_and_reading_the_right_to_read(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey]
) -> None:
    private, public = keys
    bundle = sign(version, private)
    reader = registry.acting_as(Principal("reader", frozenset({Scope.READ}), frozenset({"acme"})))
    stranger = registry.acting_as(Principal("stranger", frozenset({Scope.PUBLISH}), frozenset({"other"})))
    with pytest.raises(ForbiddenError):
        reader.put_signature("acme/topics", public.digest, bundle)
    with pytest.raises(NotFoundError):
        stranger.put_signature("acme/topics", public.digest, bundle)
    with pytest.raises(UnauthenticatedError):
        registry.acting_as(anonymous_reader()).put_signature("acme/topics", public.digest, bundle)
    put(registry, version, private)
    assert len(reader.list_signatures("acme/topics")) == 1
    with pytest.raises(NotFoundError):
        stranger.list_signatures("acme/topics")


def test_a_deleted_version_takes_its_signatures_with_it(
    registry: EmbeddedRegistry, version: Version, keys: tuple[Path, PublicKey], new_artifact: NewArtifact
) -> None:
    private, _ = keys
    put(registry, version, private)
    transfer.push(registry, new_artifact(seed=1), NAME)
    registry.delete_version("acme/topics:v1")
    again = transfer.push(registry, new_artifact(), NAME).version
    assert again.digest == version.digest
    assert registry.list_signatures(f"acme/topics@{version.digest}") == []


def test_keys_that_cannot_sign_versions_are_refused_by_name(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "locked", password=b"secret")
    with pytest.raises(InvalidInputError, match="WEFT_KEY_PASSWORD"):
        digest_of_private(private)
    assert digest_of_private(private, b"secret") == read_public(public).digest
    with pytest.raises(InvalidInputError, match="holds a public key"):
        digest_of_private(public)
    with pytest.raises(InvalidInputError, match="holds a private key"):
        read_public(private)
    with pytest.raises(NotFoundError, match="openssl ecparam"):
        read_public(tmp_path / "nothing.pub")
    (tmp_path / "text.pub").write_text("hello")
    with pytest.raises(InvalidInputError, match="no key that signs"):
        read_public(tmp_path / "text.pub")


def test_a_locked_key_signs_with_its_password(version: Version, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "locked", password=b"secret")
    verify(version, sign(version, private, b"secret"), read_public(public))
