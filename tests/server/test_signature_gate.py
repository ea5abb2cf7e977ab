"""`--require-signature`: what no key has signed is never loaded, the parts of a fusion and of a request included."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.server.registries import Counting
from weft_registry.composition import Part
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError
from weft_registry.signing.keys import digest_of_private
from weft_registry.signing.sign import sign
from weft_server.disk_cache import DiskCache
from weft_server.residency import Residency
from weft_server.resolution import Resolver
from weft_server.signature_gate import SignatureGate
from weft_server.torch_engine.engine import TorchEngine


def make_keys(directory: Path, name: str) -> tuple[Path, Path]:
    pair = ec.generate_private_key(ec.SECP384R1())
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    private.write_bytes(pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def put(registry: Counting, reference: str, private: Path) -> None:
    version = registry.resolve(reference)
    registry.put_signature(reference, digest_of_private(private), sign(version, private))


def gated(engine: TorchEngine, registry: Counting, tmp_path: Path, *keys: Path) -> Residency:
    resolver = Resolver(registry, engine.info.dtype, follow=False)
    return Residency(engine, resolver, DiskCache(tmp_path / "pulled", 1 << 30), 1 << 30, gate=SignatureGate(keys))


async def test_only_what_one_of_the_keys_has_signed_is_loaded(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path, "key")
    other_private, other_public = make_keys(tmp_path, "other")
    held = gated(engine, registry, tmp_path, public, other_public)
    with pytest.raises(PreconditionError, match=r"no signature in the registry.*weft sign test/a0@sha256") as caught:
        await held.lease("test/a0")
    assert caught.value.reason == "SIGNATURE_REQUIRED"
    assert registry.blobs_read == 0, "refused before anything of it is fetched"
    assert not held.resident()
    put(registry, "test/a0", private)
    put(registry, "test/a1", other_private)
    for reference in ("test/a0", "test/a1"):
        (await held.lease(reference)).release()
    digest = registry.resolve("test/a2").digest
    for way in (held.lease(f"test/a2@{digest}"), held.load("test/a2"), held.merge("test/a2")):
        with pytest.raises(PreconditionError, match="signature"):
            await way
    await held.close()


async def test_every_adapter_that_is_worn_must_be_signed(
    engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path, "key")
    held = gated(engine, registry, tmp_path, public)
    put(registry, "test/a0", private)
    with pytest.raises(PreconditionError, match="test/a1@"):
        await held.lease_composed((Part("test/a0"), Part("test/a1", 0.5)))
    put(registry, "test/a1", private)
    (await held.lease_composed((Part("test/a0"), Part("test/a1", 0.5)))).release()
    await held.close()


async def test_a_signature_of_another_version_does_not_help(
    engine: TorchEngine, registry: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(tmp_path, "key")
    held = gated(engine, registry, tmp_path, public)
    stolen = sign(registry.resolve("test/a0"), private)
    with pytest.raises(InvalidInputError):
        registry.put_signature("test/a1", digest_of_private(private), stolen)
    put(registry, "test/a0", private)
    found = registry.list_signatures("test/a0")
    monkeypatch.setattr(registry, "list_signatures", lambda _reference: found)
    with pytest.raises(PreconditionError, match="it signs the version"):
        await held.lease("test/a1")
    await held.close()


def test_keys_are_read_when_the_server_starts(tmp_path: Path) -> None:
    _, public = make_keys(tmp_path, "key")
    SignatureGate((public,))
    with pytest.raises(NotFoundError, match="no key at"):
        SignatureGate((tmp_path / "gone.pub",))
    public.write_text("no key")
    with pytest.raises(InvalidInputError, match="no key that signs"):
        SignatureGate((public,))


def test_without_keys_nothing_is_asked_for(registry: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "list_signatures", asked.append)
    SignatureGate(()).check(registry, registry.resolve("test/a0"))
    assert asked == []
