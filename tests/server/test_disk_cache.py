"""Pulled artifacts on disk: the limit, who goes first, and who never goes."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.registries import Counting, residency, spoil
from weft_registry.api import Version
from weft_registry.errors import CorruptionError, ExhaustedError, UnavailableError
from weft_server.disk_cache import DiskCache
from weft_server.torch_engine.engine import TorchEngine

NAMES = ("a0", "a1", "a2")


@pytest.fixture
def versions(registry: Counting) -> list[Version]:
    """Three versions of one size."""
    return [registry.resolve(f"test/{name}") for name in NAMES]


def size(version: Version) -> int:
    return version.size_bytes + len(version.manifest_bytes)


def use(disk: DiskCache, registry: Counting, version: Version) -> int:
    """Brings a version in; the files that the registry was asked for."""
    before = registry.blobs_read
    with disk.artifact(registry, version) as directory:
        assert directory.is_dir()
    return registry.blobs_read - before


def on_disk(disk: DiskCache) -> list[str]:
    return [pulled.digest for pulled in disk.artifacts()]


def test_the_least_recently_used_goes_first(registry: Counting, versions: list[Version], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "pulled", 2 * size(versions[0]) + 100)
    for version in (versions[0], versions[1], versions[0], versions[2]):
        use(disk, registry, version)
    assert on_disk(disk) == [versions[2].digest, versions[0].digest]
    assert disk.size_bytes == sum(size(versions[i]) for i in (0, 2)) <= disk.limit_bytes
    assert use(disk, registry, versions[0]) == 0
    assert use(disk, registry, versions[1]) == len(versions[1].manifest.files)


def test_what_is_pinned_stays_and_the_error_says_so(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path / "pulled", size(versions[0]) + 100)
    use(disk, registry, versions[0])
    disk.pin(versions[0].digest)
    with pytest.raises(ExhaustedError, match=r"adapters in memory.*--disk-cache") as caught:
        use(disk, registry, versions[1])
    assert caught.value.retry_after_s
    assert on_disk(disk) == [versions[0].digest]
    disk.unpin(versions[0].digest)
    use(disk, registry, versions[1])
    assert on_disk(disk) == [versions[1].digest]


def test_one_artifact_over_the_limit_says_so_and_removes_nothing(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    prefix = registry.resolve("test/p")
    disk = DiskCache(tmp_path / "pulled", size(prefix) + 100)
    use(disk, registry, prefix)
    with pytest.raises(ExhaustedError, match=f"takes {size(versions[0])} bytes on disk.*raise --disk-cache") as caught:
        use(disk, registry, versions[0])
    assert caught.value.retry_after_s is None
    assert on_disk(disk) == [prefix.digest]


def test_a_new_cache_counts_what_is_there_and_meets_its_limit(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    large = DiskCache(tmp_path / "pulled", 1 << 30)
    for age, version in enumerate(versions):
        use(large, registry, version)
        os.utime(large.path(version.digest), (1000.0 + age, 1000.0 + age))
    (tmp_path / "pulled" / "notes.txt").write_text("not ours, not touched")
    again = DiskCache(tmp_path / "pulled", 1 << 30)
    assert again.size_bytes == large.size_bytes == sum(map(size, versions))
    assert on_disk(again) == [version.digest for version in reversed(versions)]
    small = DiskCache(tmp_path / "pulled", 2 * size(versions[0]) + 100)
    assert on_disk(small) == [versions[2].digest, versions[1].digest]
    assert use(small, registry, versions[1]) == 0
    assert (tmp_path / "pulled" / "notes.txt").is_file()


def test_a_broken_off_pull_is_counted_and_gone_on_with_and_cleaned_at_the_next_start(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    def gone(digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        if registry.blobs_read % 2:
            raise UnavailableError("gone")
        return Counting.read_blob(registry, digest, offset, limit, unverified=unverified)

    disk = DiskCache(tmp_path / "pulled", 1 << 30)
    registry.read_blob = gone  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        use(disk, registry, versions[0])
    assert on_disk(disk) == []
    assert 0 < disk.size_bytes < size(versions[0])
    del registry.read_blob  # type: ignore[method-assign]
    shutil.copytree(tmp_path / "pulled", tmp_path / "killed")
    assert use(disk, registry, versions[0]) == len(versions[0].manifest.files) - 1
    assert disk.size_bytes == size(versions[0])
    assert DiskCache(tmp_path / "killed", 1 << 30).size_bytes == 0
    assert list((tmp_path / "killed").iterdir()) == []


def test_wrong_bytes_from_the_registry_leave_no_artifact(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    spoil(tmp_path / "home", versions[0])
    disk = DiskCache(tmp_path / "pulled", 1 << 30)
    with pytest.raises(CorruptionError):
        use(disk, registry, versions[0])
    assert on_disk(disk) == []


def test_what_another_server_reads_is_not_removed(registry: Counting, versions: list[Version], tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "pulled", 2 * size(versions[0]) + 100)
    for version in versions[:2]:
        use(disk, registry, version)
    # The lock is per open directory, so that this process can play another one.
    descriptor = os.open(disk.path(versions[0].digest), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    use(disk, registry, versions[2])
    os.close(descriptor)
    assert set(on_disk(disk)) == {versions[0].digest, versions[2].digest}


def test_what_another_server_removed_is_fetched_again(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path / "pulled", 1 << 30)
    use(disk, registry, versions[0])
    shutil.rmtree(disk.path(versions[0].digest))
    assert use(disk, registry, versions[0]) == len(versions[0].manifest.files)


async def test_an_adapter_in_memory_keeps_its_artifact_until_it_leaves(
    engine: TorchEngine, registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    held, _ = residency(engine, registry, tmp_path, disk_bytes=size(versions[0]) + 100)
    await held.load("test/a0")
    with pytest.raises(ExhaustedError, match="--disk-cache"):
        await held.load("test/a1")
    assert [r.reference for r in held.resident()] == ["test/a0"]
    await held.unload("test/a0")
    await held.load("test/a1")
    assert on_disk(held.disk) == [versions[1].digest]


def test_what_another_server_brought_and_removed_is_counted_with_the_next_pull(
    registry: Counting, versions: list[Version], tmp_path: Path
) -> None:
    ours, theirs = (DiskCache(tmp_path / "pulled", 1 << 30) for _ in range(2))
    use(ours, registry, versions[0])
    use(theirs, registry, versions[1])
    shutil.rmtree(ours.path(versions[0].digest))
    use(ours, registry, versions[2])
    assert ours.size_bytes == size(versions[1]) + size(versions[2])
