"""Nothing holds a whole file in memory: what is done with 256 MiB takes a small part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backends.fresh import only_on_disk
from tests.registry.kill_lab import ServedRegistry, large_artifact
from tests.registry.lab import python
from weft_registry import transfer
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

MEBIBYTES, BOUND_MIB = 256, 64

# The peak since the last reset, of pages in memory; the file is read once before, so that imports are not counted.
SCRIPT = """
import json, sys
from pathlib import Path
from weft_registry import transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName

def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024

def peak(act):
    Path("/proc/self/clear_refs").write_text("5")
    before = field("VmRSS")
    act()
    return field("VmHWM") - before

small, large, work = map(Path, sys.argv[1:])
home = Home.from_environment()
registry = EmbeddedRegistry(home)
name = AdapterName("team", "support")

def everything(directory, label):
    version = {}
    yield "push", lambda: version.update(it=transfer.push(registry, directory, name).version)
    yield "pull", lambda: transfer.pull(registry, version["it"], work / f"{label}-pulled")
    yield "verify", lambda: registry.verify(f"{name}@{version['it'].digest}")
    yield "check", lambda: list(registry.check())
    yield "backup", lambda: registry.backup(work / f"{label}-backup")
    yield "archive", lambda: registry.backup(work / f"{label}.tar")
    def restore(source):
        from weft_registry.storage import Storage
        into = f"{label}-{source.suffix}"
        storage = Storage(f"sqlite:///{work}/{into}.db", f"file://{work}/{into}")
        other = EmbeddedRegistry(Home(work / into), storage=storage)
        other.restore(source)
        other.close()
    yield "restore", lambda: restore(work / f"{label}-backup")
    yield "restore archive", lambda: restore(work / f"{label}.tar")
    def collect():
        registry.delete_version(f"{name}@{version['it'].digest}")
        from weft_registry.catalog import tables
        with registry._catalog.write() as connection:
            connection.execute(tables.blob_leases.delete())
        assert registry.collect_garbage(grace_s=0).removed_blobs > 0
    yield "gc", collect

for _, act in everything(small, "small"):
    act()
print(json.dumps({what: peak(act) for what, act in everything(large, "large")}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_artifact(tmp_path_factory.mktemp("large") / "artifact", MEBIBYTES)


@only_on_disk
def test_nothing_embedded_holds_a_whole_file(home: Home, large: Path, tmp_path: Path) -> None:
    small = large_artifact(tmp_path / "small", 4, seed=1)
    process = python(SCRIPT, str(small), str(large), str(tmp_path), home=home)
    out, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    peaks = json.loads(out)
    assert len(peaks) == 9
    assert {what: peak for what, peak in peaks.items() if peak > BOUND_MIB} == {}


@only_on_disk
def test_no_server_holds_a_whole_file(home: Home, large: Path, tmp_path: Path) -> None:
    def resident(field: str) -> float:
        assert served.process is not None
        lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024

    served = ServedRegistry(home)
    served.start()
    registry = RemoteRegistry(served.address)
    try:
        small = transfer.push(registry, large_artifact(tmp_path / "small", 4, seed=1), AdapterName("team", "small"))
        transfer.pull(registry, small.version, tmp_path / "small-pulled")
        before = resident("VmHWM")
        version = transfer.push(registry, large, AdapterName("team", "large")).version
        transfer.pull(registry, version, tmp_path / "pulled")
        registry.verify(f"team/large@{version.digest}")
        assert resident("VmHWM") - before < BOUND_MIB
    finally:
        registry.close()
        served.kill()
