"""Every training method on the same real tasks, and LoRA at several ranks: what each answers right, trains, stores and
takes.

Each method with its own learning rate and the same number of steps, on one int4 base; LoRA's relatives and bottleneck
networks on the top eight layers, all linears of the top ten trained whole by `partial` (the layers below are computed
once), what stands before the text in all layers, and all of the base by `full` and `galore`. A fusion is one of the
Pfeiffer adapters of both tasks. Scores are shares of held-out examples answered exactly, mean over seeds with its 95%
interval. Whole layers are scored as they are served: extracted to a LoRA of rank 32. What serving costs is in
bench_decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks import experiments
from benchmarks.experiments import Trained, mean_and_interval, say
from benchmarks.ledger import Ledger, Values
from benchmarks.report import Row, arguments, report
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

TASKS = ("topic", "sentiment")
TOP = {"layers": "top:8"}
RANKS = (1, 2, 4, 8, 64)
_INIT = {
    "topic": "Name the topic of the news article in one word.",
    "sentiment": "Say whether the review is positive or negative.",
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one method is trained here."""

    method: str
    learning_rate: float
    adapter: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 80
    from_text: bool = False
    """Whether it starts at a sentence that names the task."""
    fuses: str = ""
    """The recipe by which one adapter a task is trained first, where it is a fusion of those."""


RECIPES: Mapping[str, Recipe] = {
    "lora": Recipe("lora", 4e-3, {"r": 8, **TOP}),
    "rslora": Recipe("lora", 2e-3, {"r": 8, "use_rslora": True, **TOP}),
    "pissa": Recipe("lora", 4e-3, {"r": 8, "init": "pissa", **TOP}),
    "dora": Recipe("dora", 4e-3, {"r": 8, **TOP}),
    "qalora": Recipe("qalora", 4e-3, {"r": 8, **TOP}),
    "ia3": Recipe("ia3", 3e-2, TOP),
    "houlsby": Recipe("houlsby", 2e-3, {"reduction_factor": 16, **TOP}),
    "pfeiffer": Recipe("pfeiffer", 2e-3, {"reduction_factor": 16, **TOP}),
    "parallel": Recipe("parallel", 2e-3, {"reduction_factor": 16, **TOP}),
    "fusion": Recipe("fusion", 1e-3, fuses="pfeiffer"),
    "partial": Recipe("partial", 2e-4, {"unfreeze": ["model.layers.2?.*_proj"], "extract": {"rank": 32}}),
    "full": Recipe("full", 1e-4, {"extract": {"rank": 32}}),
    "galore": Recipe("galore", 4e-3, {"rank": 64, "update_proj_gap": 40, "scale": 0.25, "extract": {"rank": 32}}),
    "prefix": Recipe("prefix", 5e-3, {}, from_text=True),
    "p_tuning_v2": Recipe("p_tuning_v2", 3e-2, {"num_virtual_tokens": 16}),
    "prompt_tuning": Recipe("prompt_tuning", 3e-2, {}, from_text=True),
    "p_tuning": Recipe("p_tuning", 3e-3, {"num_virtual_tokens": 16}),
}


def main() -> None:
    """Runs the benchmark."""
    parts = (*RECIPES, "ranks")
    args = arguments(__doc__ or "", hours=True, parts=parts)
    chosen = (args.only,) if args.only else parts
    names = TASKS[:1] if args.quick else TASKS
    seeds = (0,) if args.quick else (0, 1, 2)
    steps = 4 if args.quick else None
    ledger = experiments.ledger("methods", resume=args.resume)
    rows: list[Row] = []
    for task in names:
        for name, recipe in RECIPES.items():
            if name in chosen:
                rows += _rows(f"{task}_{name}", [_found(ledger, task, recipe, seed, steps) for seed in seeds])
    ranks = (8,) if args.quick else RANKS
    for rank in ranks if "ranks" in chosen else ():
        recipe = Recipe("lora", 4e-3, {"r": rank, "alpha": 2 * rank, **TOP})
        rows += _rows(f"topic_lora_r{rank}", [_found(ledger, "topic", recipe, seed, steps) for seed in seeds])
    report("Methods on real tasks, SmolLM2-135M int4", rows, args.json)


def _found(ledger: Ledger, task: str, recipe: Recipe, seed: int, steps: int | None) -> Values:
    """One training run's figures."""
    adapter, training = _settings(task, recipe, steps)

    def measure() -> Values:
        own = {**adapter, "parts": _published(RECIPES[recipe.fuses], seed, steps)} if recipe.fuses else adapter
        done = _train(task, recipe, seed, own, training, steps)
        return {
            "exact_match": done.score.exact_match,
            "loss": done.score.loss,
            "trained": done.trained,
            "parameters": done.stored,
            "bytes": done.manifest.size_bytes,
            "cpu_seconds": done.cpu_seconds,
        }

    key = {"task": task, "method": recipe.method, "seed": seed, "adapter": adapter, "training": training}
    if recipe.fuses:
        key["parts"] = [_settings(each, RECIPES[recipe.fuses], steps) for each in TASKS]
    values = ledger.values(key, measure)
    say(f"{task} {recipe.method} {adapter} seed {seed}: {values['exact_match']:.3f}, {values['cpu_seconds']:.0f} CPU s")
    return values


def _settings(task: str, recipe: Recipe, steps: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run's configuration says under `adapter` and `training`."""
    adapter = {**recipe.adapter, **({"init_text": _INIT[task]} if recipe.from_text else {})}
    training = {
        "steps": steps or recipe.steps,
        "batch_size": 16,
        "learning_rate": recipe.learning_rate,
        "warmup": 0.1,
    }
    return adapter, training


def _train(
    task: str, recipe: Recipe, seed: int, adapter: dict[str, Any], training: dict[str, Any], steps: int | None
) -> Trained:
    return experiments.run(
        task, recipe.method, seed, adapter=adapter, training=training, eval_rows=16 if steps else None
    )


@cache
def _published(recipe: Recipe, seed: int, steps: int | None) -> list[str]:
    """One adapter a task, trained by `recipe` and published in the benchmarks' registry: their references."""
    references = []
    for task in TASKS:
        done = _train(task, recipe, seed, *_settings(task, recipe, steps), steps)
        name = AdapterName("methods", f"{task}-{recipe.method}".replace("_", "-"))
        with closing(EmbeddedRegistry(experiments.home())) as registry:
            references.append(f"{name}@{push(registry, done.artifact, name).version.digest}")
    return references


def _rows(metric: str, runs: Sequence[Values]) -> list[Row]:
    mean, interval = mean_and_interval([run["exact_match"] for run in runs])
    loss, _ = mean_and_interval([run["loss"] for run in runs])
    seconds, _ = mean_and_interval([run["cpu_seconds"] for run in runs])
    return [
        Row(metric, mean, f"exact match ± {interval:.3f} (95%, {len(runs)} seeds)"),
        Row(f"{metric}_loss", loss, "nats"),
        Row(f"{metric}_trained", runs[0]["trained"], "numbers trained"),
        Row(f"{metric}_parameters", runs[0]["parameters"], "numbers stored"),
        Row(f"{metric}_bytes", runs[0]["bytes"], "bytes"),
        Row(f"{metric}_training", seconds, "CPU s"),
    ]


if __name__ == "__main__":
    main()
