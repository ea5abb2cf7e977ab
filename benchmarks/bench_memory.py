"""Resident memory of `weft serve` with the real base and 8 adapters in use; start-up time and memory of `weft list`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Row, arguments, median_and_spread, report
from benchmarks.server_process import CLI, ServerProcess
from benchmarks.subjects import BASE_NAME, benchmark_home, random_adapter, real_base
from weft_client import InferenceClient
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

NUM_ADAPTERS = 8


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    repeats = 5 if args.quick else 15
    base = real_base(benchmark_home())
    with TemporaryDirectory() as directory:
        home = Home(Path(directory))
        home.bases.mkdir()
        (home.bases / BASE_NAME).symlink_to(benchmark_home().bases / BASE_NAME)
        registry = EmbeddedRegistry(home)
        for seed in range(NUM_ADAPTERS):
            path = home.root / "artifacts" / str(seed)
            random_adapter("lora", base.spec, seed).write(path, base.spec, f"bench/lora{seed}")
            push(registry, path, AdapterName("bench", f"lora{seed}"))
            shutil.rmtree(path)
        registry.close()
        environment = {**os.environ, "WEFT_HOME": str(home.root)}
        rows = _serve(home)
        rows += _list(environment, repeats)
    report(f"Memory: SmolLM2-135M int4, bfloat16, {NUM_ADAPTERS} LoRA adapters of rank 8", rows, args.json)


def _serve(home: Home) -> list[Row]:
    process = ServerProcess(home)
    try:
        address = process.wait_ready()
        rows = [Row("weft serve, ready", _resident_mib(process.pid), "MiB")]
        with InferenceClient(address) as client, ThreadPoolExecutor(32) as pool:

            def ask(index: int) -> None:
                client.generate("word " * 64, f"bench/lora{index % NUM_ADAPTERS}", max_new_tokens=64, ignore_eos=True)

            for batch in (8, 32):
                list(pool.map(ask, range(batch)))
                rows.append(Row(f"weft serve after a batch of {batch}", _resident_mib(process.pid), "MiB"))
            assert len(client.resident().adapters) == NUM_ADAPTERS
        rows.append(Row("weft serve, highest so far", _resident_mib(process.pid, "VmHWM"), "MiB"))
        return rows
    finally:
        process.stop()


def _list(environment: dict[str, str], repeats: int) -> list[Row]:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([*CLI, "list"], env=environment, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - begin)
    # The highest of all children would be the server's: measured in a process that has only this child.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    kib = subprocess.run(
        [sys.executable, "-c", code, *CLI, "list"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    value, spread = median_and_spread(seconds)
    return [Row("weft list", value, "s", spread=spread), Row("weft list", int(kib) / 1024, "MiB")]


def _resident_mib(pid: int, field: str = "VmRSS") -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} for process {pid}")


if __name__ == "__main__":
    main()
