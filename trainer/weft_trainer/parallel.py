"""`training.devices: N`: N processes train one adapter together, each on its own device and its own share of every
step; accelerate and torch's DistributedDataParallel average their gradients (NCCL between GPUs, Gloo between CPUs).

This process trains nothing. It starts the others, shows what the first one reports, passes signals on, and ends them
all when one fails.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from weft_registry.errors import PreconditionError, WeftError
from weft_registry.home import Home
from weft_trainer.config.run import TrainConfig
from weft_trainer.progress import QuietReporter, Reporter, Task
from weft_trainer.training.interrupt import StopRequest, not_begun
from weft_trainer.training.rank import Rank

_JOIN_S = 30.0


def check_devices(count: int) -> None:
    """Raises `PreconditionError` if there are not so many devices here."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus and count > gpus:
        raise PreconditionError(f"training.devices: {count}, but torch finds {gpus} GPUs: lower it")
    if not gpus and count > cores:
        raise PreconditionError(f"training.devices: {count}, but this machine has no GPU and {cores} cores: lower it")


def train_together(config: TrainConfig, report: Reporter, home: Home | None) -> Path:
    """Trains in `config.training.devices` processes and returns the artifact's directory.

    Raises what the run raises in any of them, and `PreconditionError` for a process that just died.
    """
    count, request = config.training.devices, StopRequest()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="weft-ranks-") as meeting:
        pipes = [spawn.Pipe(duplex=False) for _ in range(count)]
        workers = [
            spawn.Process(target=_work, args=(Rank(i, count), config, home, Path(meeting), sender), daemon=True)
            for i, (_, sender) in enumerate(pipes)
        ]

        def stop(text: str) -> None:
            report.message(text)
            for worker in workers:
                if worker.pid is not None and worker.is_alive():
                    os.kill(worker.pid, signal.SIGTERM)

        request.finish(f"{count} processes end as soon as nothing is lost")
        try:
            with request.listening(stop):
                with _terminal_waits():
                    for worker in workers:
                        worker.start()
                if request.signal:
                    # Whoever was not there yet did not hear of it.
                    raise not_begun(request.signal, config)
                for _, sender in pipes:
                    sender.close()
                _follow([receiver for receiver, _ in pipes], workers, report, config, request)
                for worker in workers:
                    worker.join(_JOIN_S)
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                    worker.join()
    return config.output


@contextmanager
def _terminal_waits() -> Iterator[None]:
    """SIGINT waits for its end; in the processes that are started within it, which import for seconds before they are
    asked, until they let it through."""
    # It begins with the first process otherwise, and lets all signals through again when it has.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(
    receivers: list[Connection[Any, Any]],
    workers: list[Any],
    report: Reporter,
    config: TrainConfig,
    request: StopRequest,
) -> None:
    """Replays what the first process reports until every one is done; raises the first error."""
    open_ends = dict(zip(receivers, workers, strict=True))
    with ExitStack() as stack:
        tasks: list[tuple[ExitStack, Task]] = []
        while open_ends:
            for ready in wait(list(open_ends)):
                assert isinstance(ready, multiprocessing.connection.Connection)
                try:
                    event, *values = ready.recv()
                except EOFError:
                    worker = open_ends.pop(ready)
                    worker.join(_JOIN_S)
                    # One that lost its partner dies of that; the partner says what happened.
                    raise _said(open_ends) or _died(worker.exitcode, config, request) from None
                if event == "done":
                    del open_ends[ready]
                elif event == "error":
                    raise values[0]
                elif event == "message":
                    report.message(*values)
                elif event == "task":
                    own = stack.enter_context(ExitStack())
                    tasks.append((own, own.enter_context(report.task(*values))))
                elif event == "end":
                    tasks.pop()[0].close()
                else:
                    getattr(tasks[-1][1], event)(*values)


def _said(open_ends: Iterable[Connection[Any, Any]]) -> WeftError | None:
    """The error that one of the processes has sent and nobody has read yet."""
    for receiver in open_ends:
        with contextlib.suppress(EOFError):
            while receiver.poll():
                event, *values = receiver.recv()
                if event == "error":
                    assert isinstance(values[0], WeftError)
                    return values[0]
    return None


def _died(status: int | None, config: TrainConfig, request: StopRequest) -> PreconditionError:
    if request.signal and status == -signal.SIGTERM:
        # It was still importing what trains.
        return not_begun(request.signal, config)
    return PreconditionError(
        f"a training process ended with status {status}; what it wrote to standard error says why. Status -9 is what "
        "a machine that runs out of memory does: lower training.devices or training.batch_size",
        reason="PROCESS_DIED",
    )


def _work(rank: Rank, config: TrainConfig, home: Home | None, meeting: Path, sender: Connection[Any, Any]) -> None:
    """The body of one training process. What it writes for itself is in `meeting`, which goes even if it is killed."""
    # Signals of the terminal go to the parent, which passes them on; otherwise they would arrive twice. One that came
    # before this line waits, and is dropped here.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    values = (rank.index, rank.index, rank.count, rank.count)
    os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
    threads = max(1, (os.cpu_count() or 1) // rank.count)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    from weft_trainer.quiet import quiet_transformers

    quiet_transformers()
    from weft_trainer.run import run

    device = rank.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Meeting at a file of our own: a port could be somebody else's by the time it is used.
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting / 'store'}",
        rank=rank.index,
        world_size=rank.count,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        run(config, _Relay(sender) if rank.writes else QuietReporter(), home, rank, meeting)
        sender.send(("done",))
    except WeftError as error:
        sender.send(("error", error))
    finally:
        with contextlib.suppress(RuntimeError):  # A partner that died first has broken the group already.
            torch.distributed.destroy_process_group()


class _Relay:
    """A reporter that sends what it is told to the parent."""

    def __init__(self, sender: Connection[Any, Any]) -> None:
        self._sender = sender

    def message(self, text: str) -> None:
        self._sender.send(("message", text))

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        self._sender.send(("task", label, total))
        yield _RelayTask(self._sender)
        self._sender.send(("end",))


class _RelayTask:
    def __init__(self, sender: Connection[Any, Any]) -> None:
        self._sender = sender

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self._sender.send(("advance", steps, note))

    def skip(self, steps: int) -> None:
        self._sender.send(("skip", steps))
