"""Signs versions, and proves signatures, with the `model-signing` package and a key in a file.

What is signed is the list of a version's files by digest, the manifest among them: so a signature proves the version's
digest, and stock `model_signing verify key` accepts the same signature for the directory that `weft pull` makes.
Nothing is downloaded for it: the manifest lists what the files must be, and whoever pulls them checks that they are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.api import RegistryApi, Version
from weft_registry.errors import CorruptionError, InvalidInputError, PreconditionError
from weft_registry.signing import bundle as bundles
from weft_registry.signing.keys import PublicKey, needs_extra

if TYPE_CHECKING:
    from model_signing import hashing
    from model_signing.manifest import Manifest as FileList


def sign(version: Version, key: Path, password: bytes | None = None) -> bytes:
    """A signature of a version by the private key in the file `key`.

    Raises `CorruptionError` for a manifest that does not have the version's digest, `UnsupportedError` without the
    extra.
    """
    config = _hashing(version)
    with needs_extra():
        from model_signing import signing
    with tempfile.TemporaryDirectory(prefix="weft-sign-") as scratch:
        made = Path(scratch) / "bundle.json"
        # Partly without types.
        signer: Any = signing.Config
        signer = signer().set_hashing_config(config).use_elliptic_key_signer(private_key=key, password=password)
        # The name of the directory is the subject's; there need be none.
        signer.sign(Path(scratch) / version.adapter.name, made)
        return made.read_bytes()


def verify(version: Version, bundle: bytes, key: PublicKey) -> None:
    """Raises `InvalidInputError` (`BAD_SIGNATURE`) unless `bundle` is a signature of the version by the key, and
    `CorruptionError` for a manifest that does not have the version's digest."""
    config = _hashing(version)
    bundles.check_subject(bundle, version.digest)
    with needs_extra():
        from cryptography.exceptions import InvalidSignature
        from model_signing import verifying
    with tempfile.TemporaryDirectory(prefix="weft-verify-") as scratch:
        kept = Path(scratch) / "bundle.json"
        kept.write_bytes(bundle)
        public = Path(scratch) / "key.pub"
        public.write_bytes(key.pem)
        verifier: Any = verifying.Config
        verifier = verifier().set_hashing_config(config).use_elliptic_key_verifier(public_key=public)
        try:
            verifier.verify(Path(scratch) / version.adapter.name, kept)
        except InvalidSignature as error:
            raise _bad(version, key, "its bytes were signed by another key, or changed since") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            # What the package raises for bundles that are none: it parses them as it goes.
            raise _bad(version, key, str(error)[:300] or type(error).__name__) from error


def require(registry: RegistryApi, version: Version, keys: Sequence[PublicKey]) -> PublicKey:
    """The first of the keys that has signed the version.

    Raises `PreconditionError` (`SIGNATURE_REQUIRED`) where none has, and what asking the registry raises.
    """
    _check_manifest(version)
    reference = f"{version.adapter}@{version.digest}"
    found = {signature.key_digest: signature.bundle for signature in registry.list_signatures(reference)}
    why: list[str] = []
    for key in keys:
        if key.digest not in found:
            continue
        try:
            verify(version, found[key.digest], key)
        except InvalidInputError as error:
            why.append(error.message)
        else:
            return key
    said = "; ".join(why) or (
        f"it has {len(found)} signatures, by other keys" if found else "it has no signature in the registry"
    )
    names = ", ".join(str(key.path) for key in keys)
    raise PreconditionError(
        f"{reference} has no valid signature by {names}: {said}. Whoever holds the key signs it with "
        f"`weft sign {reference} --key KEY`",
        reason="SIGNATURE_REQUIRED",
        metadata={"adapter": str(version.adapter), "digest": version.digest},
    )


def _hashing(version: Version) -> hashing.Config:
    """What `model-signing` asks for the list of files; it would hash a directory."""
    _check_manifest(version)
    with needs_extra():
        from model_signing import hashing
        from model_signing._hashing.hashing import Digest
        from model_signing.manifest import Manifest, SerializationType

    # By files, which is the package's default: stock verification then hashes a pulled directory in the same way.
    by_files = SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    listed = {file.path: file.sha256 for file in version.manifest.files} | {artifact.MANIFEST: version.digest}
    items = [
        by_files.new_item(path, Digest("sha256", bytes.fromhex(digest.removeprefix("sha256:"))))
        for path, digest in listed.items()
    ]

    class FromManifest(hashing.Config):
        def hash(
            self, model_path: hashing.PathLike, *, files_to_hash: Iterable[hashing.PathLike] | None = None
        ) -> FileList:
            return Manifest(Path(os.fsdecode(model_path)).name, items, by_files)

        def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
            # A signature may say what it left out; all files of a version count.
            return

    made: Any = FromManifest
    return cast("hashing.Config", made())


def _check_manifest(version: Version) -> None:
    found = digests.of_bytes(version.manifest_bytes)
    if found != version.digest:
        raise CorruptionError(
            f"the manifest of {version.adapter} has the digest {found}, not {version.digest}",
            reason="DIGEST_MISMATCH",
            metadata={"digest": version.digest, "found": found},
        )


def _bad(version: Version, key: PublicKey, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the signature of {version.adapter}@{version.digest} under the key {key.path} does not hold: {why}",
        reason="BAD_SIGNATURE",
    )
