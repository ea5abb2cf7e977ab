"""QA-LoRA's claim at small scale (Xu et al. 2023, arXiv:2309.14717, table 1): what is left of an adapter once it is
merged into a base of 4, 3 and 2 bits.

For every width: the base alone; LoRA trained on it (QLoRA) as it is served beside the base, and merged and quantized
again, to the nearest and by GPTQ calibrated on the task's own training text; QA-LoRA unmerged and merged into the
groups' minima. Bases of 3 and 2 bits are made from the 4-bit one by GPTQ on the same kind of text.

Share of held-out examples answered exactly, mean over seeds with its 95% interval.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import experiments
from benchmarks.experiments import mean_and_interval, say
from benchmarks.ledger import Values
from benchmarks.report import Row, arguments, report
from benchmarks.subjects import BASE_NAME, benchmark_home
from weft_registry.base import BaseStore
from weft_trainer.progress import QuietReporter
from weft_trainer.requantize import requantize

GROUP = 32
ADAPTER = {"r": 8, "alpha": 16, "target_modules": ["all"], "layers": "top:8"}
# One recipe for both: that of the demo's QA-LoRA task.
TRAINING: Mapping[str, Any] = {"steps": 80, "batch_size": 16, "learning_rate": 4e-3, "warmup": 0.1}
CALIBRATION: dict[str, Any] = {"samples": 64, "length": 128}


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "", hours=True)
    names = ("topic",) if args.quick else ("topic", "sentiment")
    widths, seeds = ((3,), (0,)) if args.quick else ((4, 3, 2), (0, 1, 2))
    training = {**TRAINING, "steps": 20} if args.quick else TRAINING
    rows = 64 if args.quick else None
    ledger = experiments.ledger("qalora", resume=args.resume)
    values: dict[str, list[float]] = {}
    for task in names:
        for bits in widths:
            base = base_of(bits, task)
            key = {"task": task, "bits": bits, "rows": rows, "calibration": CALIBRATION}
            note(values, f"{task}_{bits}bit", ledger.values(key, partial(alone, task, base, rows)))
            for seed in seeds:
                measure = partial(cell, task, base, bits, seed, training, rows)
                found = ledger.values({**key, "seed": seed, "adapter": ADAPTER, "training": training}, measure)
                note(values, f"{task}_{bits}bit", found)
    table = []
    for metric, scores in values.items():
        mean, interval = mean_and_interval(scores)
        table.append(Row(metric, mean, f"exact match ± {interval:.3f} (95%, {len(scores)} seeds)"))
    report("What is left of an adapter after merging, by the base's bits", table, args.json)


def note(values: dict[str, list[float]], prefix: str, found: Values) -> None:
    """Keeps scores, and says them."""
    for name, value in found.items():
        values.setdefault(f"{prefix}_{name}", []).append(value)
        say(f"{prefix}_{name}: {value:.3f}")


def alone(task: str, base: str, rows: int | None) -> Values:
    """The base's own score."""
    return {"base": experiments.scored(task, None, base, eval_rows=rows).exact_match}


def base_of(bits: int, task: str) -> str:
    """The base of a width, made once."""
    if bits == 4:
        experiments.home()
        return BASE_NAME
    name = f"{BASE_NAME}-{bits}bit-{task}"
    home = experiments.home()
    if name not in BaseStore(home.bases).names():
        say(f"making {name}")
        calibration = experiments.data(task)[0]
        requantize(
            BASE_NAME,
            name,
            QuietReporter(),
            bits=bits,
            group_size=GROUP,
            calibration=calibration,
            home=home,
            **CALIBRATION,
        )
    return name


def cell(task: str, base: str, bits: int, seed: int, training: Mapping[str, Any], rows: int | None) -> Values:
    """Every way to serve the two adapters of one seed."""

    def trained(method: str) -> experiments.Trained:
        return experiments.run(task, method, seed, base=base, adapter=ADAPTER, training=training, eval_rows=rows)

    qlora, qalora = trained("lora"), trained("qalora")
    return {
        "qlora_unmerged": qlora.score.exact_match,
        "qlora_merged_nearest": requantized(task, base, bits, qlora.artifact, None, rows),
        "qlora_merged_gptq": requantized(task, base, bits, qlora.artifact, experiments.data(task)[0], rows),
        "qalora_unmerged": qalora.score.exact_match,
        "qalora_merged": experiments.scored(task, qalora.artifact, base, merged=True, eval_rows=rows).exact_match,
    }


def requantized(task: str, base: str, bits: int, merge: Path, calibration: Path | None, rows: int | None) -> float:
    """The score of a base with an adapter merged into it and quantized again."""
    home, name = experiments.home(), f"{base}-merged"
    shutil.rmtree(home.bases / name, ignore_errors=True)
    requantize(
        base,
        name,
        QuietReporter(),
        bits=bits,
        group_size=GROUP,
        calibration=calibration,
        merge=merge,
        home=home,
        **CALIBRATION,
    )
    score = experiments.scored(task, None, name, eval_rows=rows)
    shutil.rmtree(benchmark_home().bases / name)
    return score.exact_match


if __name__ == "__main__":
    main()
