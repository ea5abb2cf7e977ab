"""Registries that are looked at, or spoilt, by a test; and residency over one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.subjects import RandomAdapter, random_adapter
from weft_registry.api import RegistryApi, Version
from weft_registry.base import BaseSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import UnavailableError, WeftError
from weft_registry.home import Home
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import push
from weft_server.disk_cache import DiskCache
from weft_server.residency import Residency
from weft_server.resolution import Resolver
from weft_server.torch_engine.engine import TorchEngine


class Counting(EmbeddedRegistry):
    """A registry that counts what is asked of it, and can be made to answer nothing, or not for some references."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.blobs_read = 0
        self.resolved = 0
        self.reachable = True
        self.silent: dict[str, WeftError] = {}
        """What resolving these references raises."""

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        self.blobs_read += 1
        return super().read_blob(digest, offset, limit, unverified=unverified)

    def resolve(self, reference: str) -> Version:
        self.resolved += 1
        if not self.reachable:
            raise UnavailableError("the registry is not there")
        if reference in self.silent:
            raise self.silent[reference]
        return super().resolve(reference)


def spoil(home: Path, version: Version) -> tuple[Path, bytes]:
    """Changes the last byte of a version's weights in a registry's store; the file, and what it was."""
    weights = next(file for file in version.manifest.files if file.path.endswith(".safetensors"))
    blob = next(home.rglob(weights.sha256.removeprefix("sha256:")))
    good = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    return blob, good


def residency(
    engine: TorchEngine,
    registry: RegistryApi,
    tmp_path: Path,
    limit_bytes: int = 1 << 30,
    *,
    disk_bytes: int = 1 << 30,
    follow: bool = False,
) -> tuple[Residency, Resolver]:
    """Residency with a disk cache of its own, and what resolves for it."""
    resolver = Resolver(registry, engine.info.dtype, follow=follow)
    return Residency(engine, resolver, DiskCache(tmp_path / "pulled", disk_bytes), limit_bytes), resolver


def publish_fusion(
    registry: RegistryApi, spec: BaseSpec, directory: Path, *, parts_in: str = "test"
) -> tuple[RandomAdapter, list[Reference]]:
    """test/fused over part-0 and part-1 of a namespace, published; the fusion and its parts' references."""
    fusion = random_adapter("fusion", spec, 1, strength=0.3)
    parts: list[Reference] = []
    for number, part in enumerate(fusion.parts):
        name = AdapterName(parts_in, f"part-{number}")
        part.write(directory / name.name, spec, str(name))
        parts.append(Reference(name, digest=push(registry, directory / name.name, name).version.digest))
    fusion = replace(fusion, params=replace(fusion.params, parts=tuple(parts)))
    fusion.write(directory / "fused", spec, "test/fused")
    push(registry, directory / "fused", AdapterName("test", "fused"))
    return fusion, parts
