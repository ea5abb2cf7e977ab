"""The registry: moving large artifacts, many small ones, and finding things in a large catalog.

`push_*`, `pull_*`: an artifact of 1 GiB (128 MiB in short), into and out of a registry in this process and one behind
gRPC on this machine, beside `copy`: reading the same file, hashing, writing and syncing it, as it has to be done at
least. Client and server share the machine's cores. `*_peak` is the most memory that a process of its own had at once,
the interpreter and everything imported included; `server_peak` that of the server over all of it.

`pull_many`: 1,000 small adapters (100 in short), eight at a time in one process, beside `huggingface_hub`'s
`snapshot_download` of the same from the same server, one after the other.

`resolve`, `list`: a catalog of 10,000 adapters of 10 versions each (1,000 in short); `list` is `weft list` in a new
process.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import big_catalog
from benchmarks.registry_subjects import (
    LARGE_MODULE_BYTES,
    NAMESPACE,
    RANK,
    WIDTH,
    make_artifact,
    serving,
)
from benchmarks.report import Row, arguments, report
from benchmarks.samples import Samples
from weft_registry import artifact
from weft_registry.allocator import keep_freed_chunks
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.storage import Storage
from weft_registry.transfer import pull, push

MIB = 1 << 20
AT_ONCE = 8
VERSIONS = 10
LARGE = AdapterName(NAMESPACE, "large")

# In processes of their own: what is measured is a program that does this and nothing else.
_PULL_MANY = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.transfer import pull
address, count, at_once, to = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
registry = RemoteRegistry(address)
pull(registry, "bench/small-0", to / "warm")
begin = time.perf_counter()
with ThreadPoolExecutor(at_once) as pool:
    list(pool.map(lambda i: pull(registry, f"bench/small-{i}", to / f"small-{i}"), range(count)))
print(time.perf_counter() - begin)
"""
_SNAPSHOTS = """
import sys, time
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
count, to = int(sys.argv[1]), sys.argv[2]
snapshot_download("bench/small-0", cache_dir=to + "/warm")
begin = time.perf_counter()
for index in range(count):
    snapshot_download(f"bench/small-{index}", cache_dir=to + "/cache")
print(time.perf_counter() - begin)
"""
_PEAK = """
import sys
from pathlib import Path
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.transfer import pull, push
what, where, path, warm = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
registry = EmbeddedRegistry(Home(Path(where[5:]))) if where.startswith("home:") else RemoteRegistry(where)
push(registry, warm, AdapterName("bench", "warm"))
if what == "push":
    push(registry, path, AdapterName("bench", "peak"))
else:
    pull(registry, "bench/peak", path)
status = Path("/proc/self/status").read_text()
print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024)
"""


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "", parts=("transfer", "many", "catalog"))
    keep_freed_chunks()  # As `weft push` and `weft pull` do.
    rows: list[Row] = []
    with TemporaryDirectory(prefix="weft-registry-") as directory:
        root = Path(directory)
        if args.only in (None, "transfer"):
            rows += _transfer(root, modules=4 if args.quick else 32, repeats=3 if args.quick else 5)
        if args.only in (None, "many"):
            rows += _many(root, count=100 if args.quick else 1000, repeats=1 if args.quick else 3)
        if args.only in (None, "catalog"):
            rows += _catalog(root, adapters=1000 if args.quick else 10_000, repeats=5 if args.quick else 15)
    report("The registry, client and server on this machine", rows, args.json)


def _transfer(root: Path, modules: int, repeats: int) -> list[Row]:
    source = make_artifact(root / "large", modules, RANK, WIDTH, 1)
    warm = make_artifact(root / "warm", 1, 4, 64, 2)
    size_mib = modules * LARGE_MODULE_BYTES / MIB
    samples = Samples()

    def copy() -> float:
        seconds = _seconds(lambda: _copy(source / artifact.WEIGHTS, root / "copy"))
        (root / "copy").unlink()
        return seconds

    def beside_copy(metric: str, call: Callable[[], object]) -> None:
        """What was written before, and whether the machine has memory at hand for it, decides how fast a gigabyte is
        written: a copy that is not counted comes before each side, the copy that is counted included."""
        copy()
        copy_s = copy()
        samples.add("copy_s", copy_s)
        samples.add(metric, _seconds(call), copy_s)

    for repeat in range(repeats + 1):
        place = root / f"turn{repeat}"
        place.mkdir()
        embedded = EmbeddedRegistry(Home(place / "embedded"))
        push(embedded, warm, AdapterName(NAMESPACE, "warm"))
        beside_copy("push_embedded_s", lambda: push(embedded, source, LARGE))  # noqa: B023 - called at once
        beside_copy("pull_embedded_s", lambda: pull(embedded, str(LARGE), place / "pulled"))  # noqa: B023
        embedded.close()
        shutil.rmtree(place)
        place.mkdir()
        with serving(Home(place / "served")) as (address, _, _):
            remote = RemoteRegistry(address)
            push(remote, warm, AdapterName(NAMESPACE, "warm"))
            beside_copy("push_grpc_s", lambda: push(remote, source, LARGE))  # noqa: B023
            beside_copy("pull_grpc_s", lambda: pull(remote, str(LARGE), place / "pulled"))  # noqa: B023
            remote.close()
        shutil.rmtree(place)
        if not repeat:  # The first turn filled the caches.
            samples = Samples()
    rows = [samples.row("copy_s", "s")]
    for where in ("embedded", "grpc"):
        rows += [samples.row(f"{what}_{where}_s", "s", "copy_s") for what in ("push", "pull")]
    rows.append(Row("transfer_size", size_mib, "MiB"))
    return rows + _peaks(root, source, warm, size_mib)


def _peaks(root: Path, source: Path, warm: Path, size_mib: float) -> list[Row]:
    rows = []
    home = Home(root / "peaks")
    with serving(Home(root / "peaks-served")) as (address, _, pid):
        for where, name in ((f"home:{home.root}", "embedded"), (address, "grpc")):
            for what, path in (("push", source), ("pull", root / f"peak-{name}")):
                peak = float(_script(_PEAK, what, where, str(path), str(warm))) / MIB
                rows.append(Row(f"{what}_{name}_peak", peak, "MiB", "transfer_size", peak / size_mib))
        held = _kib(pid, "VmHWM") / 1024
        rows.append(Row("server_peak", held, "MiB", "transfer_size", held / size_mib))
    return rows


def _many(root: Path, count: int, repeats: int) -> list[Row]:
    home = Home(root / "many")
    registry = EmbeddedRegistry(home)
    for index in range(count):
        made = make_artifact(root / f"small{index}", 4, 4, 128, index)
        push(registry, made, AdapterName(NAMESPACE, f"small-{index}"))
        shutil.rmtree(made)
    registry.close()
    samples = Samples()
    with serving(home) as (address, http_address, _):
        for repeat in range(repeats):
            place = root / f"pulled{repeat}"
            place.mkdir()
            ours = float(_script(_PULL_MANY, address, str(count), str(AT_ONCE), str(place)))
            alone = float(_script(_PULL_MANY, address, str(count), "1", str(place / "alone")))
            theirs = float(
                _script(_SNAPSHOTS, str(count), str(place), HF_ENDPOINT=f"http://{http_address}", HF_HUB_OFFLINE="0")
            )
            samples.add("pull_many", count / ours, count / theirs)
            samples.add("pull_one_by_one", count / alone, count / theirs)
            samples.add("snapshot_download", count / theirs)
            shutil.rmtree(place)
    return [
        samples.row("pull_many", "adapters/s", "snapshot_download"),
        samples.row("pull_one_by_one", "adapters/s", "snapshot_download"),
        samples.row("snapshot_download", "adapters/s"),
    ]


def _catalog(root: Path, adapters: int, repeats: int) -> list[Row]:
    home = Home(root / "catalog")
    catalog = Storage().open_catalog(home.registry)
    big_catalog.fill(catalog, adapters, VERSIONS)
    catalog.close()
    registry = EmbeddedRegistry(home)
    names = [str(summary.adapter) for summary in registry.page_adapters("", "", None)]
    generator = random.Random(0)
    times_ms = []
    for _ in range(5000):
        name = generator.choice(names)
        reference = generator.choice((name, f"{name}:v{generator.randrange(VERSIONS) + 1}"))
        begin = time.perf_counter()
        registry.resolve(reference)
        times_ms.append(1e3 * (time.perf_counter() - begin))
    registry.close()
    times_ms.sort()
    samples = Samples()
    for repeat in range(repeats + 1):
        help_s, list_s = (_seconds(lambda: _weft(home, word)) for word in ("--help", "list"))  # noqa: B023 - called at once
        if repeat:  # The first turn filled the caches.
            samples.add("help_s", help_s)
            samples.add("list_s", list_s, help_s)
    return [
        Row("resolve_p50", times_ms[len(times_ms) // 2], "ms"),
        Row("resolve_p99", times_ms[len(times_ms) * 99 // 100], "ms"),
        samples.row("list_s", "s", "help_s"),
        samples.row("help_s", "s"),
        Row("catalog_adapters", adapters, "adapters"),
    ]


def _copy(source: Path, destination: Path) -> str:
    """Copies a file as carefully as a registry does: hashed, synced, renamed."""
    sha256, buffer = hashlib.sha256(), memoryview(bytearray(MIB))
    temporary = destination.with_suffix(".partial")
    with source.open("rb") as reading, temporary.open("xb") as writing:
        while size := reading.readinto(buffer):
            sha256.update(buffer[:size])
            writing.write(buffer[:size])
        writing.flush()
        os.fsync(writing.fileno())
    temporary.replace(destination)
    descriptor = os.open(destination.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return sha256.hexdigest()


def _script(script: str, *words: str, **environment: str) -> str:
    """Runs a script in a process of its own, and returns the last line that it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()[-1]


def _kib(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def _weft(home: Home, *words: str) -> None:
    """Runs a command as a user would, in a process of its own, which finds its modules compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [sys.executable, "-m", "weft_client.cli", *words],
        env={**environment, "WEFT_HOME": str(home.root)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
