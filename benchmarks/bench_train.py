"""Training beside TRL and PEFT: tokens a second, and peak memory, of LoRA on every linear of the real base model.

Weft trains over the int4 weights; TRL's SFTTrainer with a PEFT adapter trains over the same weights dequantized to
bfloat16. Both see the same examples in batches of the same size, count the loss over completions only, and take no
gradient checkpointing. Every run is a process of its own, one at a time; the sides take turns, and ratios are taken
within a turn. The first step, which warms up, is not counted. Needs TRL: pip install trl.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.report import Row, arguments, report
from benchmarks.samples import Samples
from benchmarks.subjects import BASE_NAME, benchmark_home, real_base

SIDES = ("TRL + PEFT", "Weft", "Weft, dense base")
RANK = 8


@dataclass(frozen=True)
class Task:
    """What is trained."""

    steps: int
    """Counted steps; one more warms up."""
    batch_size: int
    words: int
    """Words in the prompt, and in the completion."""


@dataclass(frozen=True)
class Measured:
    """One run."""

    tokens_per_s: float
    peak_bytes: int
    """Of the whole process, from its start."""
    loss: float
    """Of the last step: the sides must train the same thing."""


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__ or "")
    if find_spec("trl") is None:
        raise SystemExit("this benchmark compares with TRL, which is not installed: pip install trl")
    task, repeats = (Task(3, 4, 40), 1) if options.quick else (Task(8, 8, 80), 5)
    real_base(benchmark_home())
    samples = Samples()
    for _ in range(repeats):
        measured = {side: _in_a_process(side, task) for side in SIDES}
        other = measured[SIDES[0]]
        for side, found in measured.items():
            print(f"{side}: {found}", file=sys.stderr)
            samples.add(f"{side}: tokens", found.tokens_per_s, None if found is other else other.tokens_per_s)
            samples.add(f"{side}: peak", found.peak_bytes / 2**30, None if found is other else other.peak_bytes / 2**30)
            samples.add(f"{side}: loss", found.loss)
    rows: list[Row] = []
    for figure, unit in (("tokens", "tokens/s"), ("peak", "GiB"), ("loss", "nats")):
        rows += [samples.row(f"{side}: {figure}", unit, SIDES[0]) for side in SIDES]
    title = f"Training LoRA r={RANK} on every linear, bfloat16, {task.batch_size} examples a step"
    report(title, rows, options.json)


def _in_a_process(side: str, task: Task) -> Measured:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, side, task))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        raise SystemExit(f"{side}: the process ended without an answer") from None
    process.join()
    assert isinstance(found, Measured)
    return found


def _measure(sender: Connection, side: str, task: Task) -> None:
    rows = _rows(task)
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as scratch:
        if side == SIDES[0]:
            tokens, times, loss = _trl(rows, task, Path(scratch))
        else:
            tokens, times, loss = _weft(rows, task, Path(scratch), dense=side == SIDES[2])
    # Linux reports the peak in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    per_step = tokens / (task.steps + 1)
    sender.send(Measured(per_step * (len(times) - 1) / (times[-1] - times[0]), peak, loss))


def _rows(task: Task) -> list[dict[str, str]]:
    """As many examples as the run sees, each once, of one length in words."""
    chosen = random.Random(0)
    words = ["the", "market", "price", "of", "oil", "rose", "fell", "on", "company", "bank", "shares", "profit", "year"]

    def text() -> str:
        return " ".join(chosen.choice(words) for _ in range(task.words))

    count = (task.steps + 1) * task.batch_size
    return [{"prompt": text(), "completion": " " + text()} for _ in range(count)]


def _weft(rows: list[dict[str, str]], task: Task, scratch: Path, *, dense: bool) -> tuple[int, list[float], float]:
    from weft_trainer.api import train
    from weft_trainer.config.run import parse
    from weft_trainer.data.rows import read_rows
    from weft_trainer.data.tokenization import BaseTokenizer, tokenize
    from weft_trainer.progress import QuietReporter

    data = scratch / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    times: list[float] = []

    class Clock(QuietReporter):
        @contextmanager
        def task(self, label: str, total: int) -> Iterator[Any]:
            yield self

        def advance(self, steps: int = 1, note: str | None = None) -> None:
            times.append(time.perf_counter())

        def skip(self, steps: int) -> None:
            raise AssertionError("nothing is resumed")

    config = parse(
        {
            "base": BASE_NAME,
            "method": "lora",
            "output": str(scratch / "artifact"),
            "data": {"train": str(data), "eval_fraction": 0.0, "max_length": 1024},
            "adapter": {"r": RANK},
            "training": {
                "steps": task.steps + 1,
                "batch_size": task.batch_size,
                "log_every": 1,
                "dense_base": dense,
                "learning_rate": 1e-4,
                "save_every": task.steps + 1,
            },
        }
    )
    os.environ["WEFT_HOME"] = str(benchmark_home().root)
    train(config, Clock())
    log = (config.checkpoints / "log.jsonl").read_text().splitlines()
    stored = real_base(benchmark_home())
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    examples = tokenize(read_rows(data, "train"), tokenizer, 1024).examples
    return sum(len(example.ids) for example in examples), times, float(json.loads(log[-1])["loss"])


def _trl(rows: list[dict[str, str]], task: Task, scratch: Path) -> tuple[int, list[float], float]:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    from benchmarks.oracles import dense_model

    trl: Any = import_module("trl")
    datasets.disable_progress_bars()
    stored = real_base(benchmark_home())
    model = dense_model(stored, torch.bfloat16)
    model.config.use_cache = False
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            times.append(time.perf_counter())

    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(scratch / "trl"),
            max_steps=task.steps + 1,
            per_device_train_batch_size=task.batch_size,
            learning_rate=1e-4,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            max_length=1024,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(str(stored.tokenizer_dir)),
        peft_config=LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(len(row["input_ids"]) for row in trainer.train_dataset), times, float(losses[-1])


if __name__ == "__main__":
    main()
