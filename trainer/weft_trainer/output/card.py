"""The model card: what README.md of an artifact says, for people and for the Hugging Face Hub's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from weft_registry import artifact
from weft_registry.base import BaseSpec
from weft_trainer.config.objective import ObjectiveOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.dataset import Dataset
from weft_trainer.methods import METHODS
from weft_trainer.training.loop import Fitted

_TOKEN = "nats per completion token"
_UNITS = {"completion": _TOKEN, "distill": _TOKEN, "dpo": "nats per pair"}


def model_card(
    config: TrainConfig,
    base: BaseSpec,
    datasets: list[Dataset],
    fitted: Fitted,
    parameters: int,
    curve: str | None,
    stacked_on: Sequence[str],
) -> str:
    """README.md with its YAML front matter. `curve` is the file of the loss curve beside it, `stacked_on` what the
    adapter was trained on, the lowest first."""
    score = fitted.score
    front = [
        "---",
        f"base_model: {base.fingerprint.id}",
        *(["library_name: peft"] if artifact.has_config(METHODS[config.method].kind) else []),
        *([f"license: {config.license}"] if config.license else []),
        f"tags: [{config.method}, weft]",
        "---",
    ]
    text = [f"# {config.adapter_name}", ""]
    if config.description:
        text += [config.description.strip(), ""]
    text += [
        f"A `{config.method}` adapter with {parameters:,} parameters for `{base.fingerprint.id}`, trained by Weft on "
        f"its {base.fingerprint.quant.bits}-bit weights (groups of {base.fingerprint.quant.group_size}), "
        f"`{base.fingerprint.weights_sha256}`.",
        "",
        "## Data",
        "",
        "| split | file | examples | sha256 |",
        "|---|---|---|---|",
    ]
    text += [f"| {d.rows.split} | {d.rows.title} | {len(d.examples)} | `{d.rows.sha256[7:19]}` |" for d in datasets]
    text += ["", "## Training", "", *_training(config, fitted, stacked_on)]
    if curve is not None:
        text += ["", f"![The loss over the steps of training]({curve})"]
    if score is not None:
        text += [
            "",
            "## Evaluation",
            "",
            "| metric | value |",
            "|---|---|",
            f"| loss ({_UNITS[config.objective.kind]}) | {score.loss:.6f} |",
            f"| exact match of {score.examples} | {score.exact_match:.4f} |",
        ]
        own = [(name, value) for name, value in score.figures().items() if name not in ("loss", "exact_match")]
        text += [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in own]
        for part in score.parts:
            text.append(f"| exact match of {part.score.examples}, {part.name} | {part.score.exact_match:.4f} |")
    text += ["", "## Use", "", *_use(config, base, stacked_on)]
    return "\n".join([*front, "", *text])


def _training(config: TrainConfig, fitted: Fitted, stacked_on: Sequence[str]) -> list[str]:
    training = config.training
    examples = training.batch_size * training.gradient_accumulation * training.devices
    unit = "pairs" if config.objective.kind == "dpo" else "packed rows" if config.data.packing else "examples"
    rows = {
        **({} if config.start is None else {"starts at": f"`{config.start}`"}),
        **({"stacked on": ", ".join(f"`{each}`" for each in stacked_on)} if stacked_on else {}),
        "objective": _objective(config.objective),
        "steps": f"{fitted.steps} of {examples} {unit}",
        "trained parameters": f"{fitted.parameters:,}",
        "optimizer": training.optimizer,
        "learning rate": f"{training.learning_rate:g}, {training.schedule}, warm-up {training.warmup:g}",
        "weight decay": f"{training.weight_decay:g}",
        "gradient norm at most": f"{training.max_grad_norm:g}" if training.max_grad_norm else "any",
        "longest example": f"at most {config.data.max_length} tokens",
        "base computed in": training.dtype,
        "seed": str(training.seed),
    }
    return ["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _objective(objective: ObjectiveOptions) -> str:
    settings = [f"{key} {value}" for key, value in asdict(objective).items() if key != "kind" and value is not None]
    return ", ".join([objective.kind, *settings])


def _use(config: TrainConfig, base: BaseSpec, stacked_on: Sequence[str]) -> list[str]:
    name = f"NAMESPACE/{config.adapter_name}"
    worn = "+".join([*stacked_on, f"{name}:v1"])
    weft = [
        "Published and served by Weft:",
        "",
        "```",
        f"weft push DIRECTORY {name} --tag v1",
        "weft serve --base BASE",
        f'weft generate {worn} "PROMPT"',
        "```",
        "",
    ]
    if config.method == "qalora":
        return [
            *weft,
            "QA-LoRA sums its inputs over the groups of the base's quantization and merges exactly into the groups' "
            "minima. It means something only over that base.",
            "",
        ]
    if not artifact.has_config(METHODS[config.method].kind):
        return weft
    return [
        *weft,
        "Stock PEFT loads this directory too:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base.fingerprint.id}")',
        'model = PeftModel.from_pretrained(base, "DIRECTORY")',
        "```",
        "",
    ]
