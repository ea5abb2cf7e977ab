"""The model card: what README.md of an artifact says, for people and for the Hugging Face Hub's metadata."""

from __future__ import annotations

from weft_registry.base import BaseSpec
from weft_trainer.config import TrainConfig
from weft_trainer.data import Dataset
from weft_trainer.score import Score


def model_card(
    config: TrainConfig, base: BaseSpec, datasets: list[Dataset], score: Score | None, steps: int, parameters: int
) -> str:
    """README.md with its YAML front matter."""
    front = [
        "---",
        f"base_model: {base.fingerprint.id}",
        "library_name: peft",
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
    text += [f"| {d.rows.split} | {d.rows.uri} | {len(d.examples)} | `{d.rows.sha256[7:19]}` |" for d in datasets]
    text += ["", "## Training", "", f"{steps} steps of {_batch(config)} examples, seed {config.training.seed}."]
    if score is not None:
        text += [
            "",
            "## Evaluation",
            "",
            "| metric | value |",
            "|---|---|",
            f"| loss (nats per completion token) | {score.loss:.6f} |",
            f"| exact match of {score.examples} | {score.exact_match:.4f} |",
        ]
    text += ["", "## Use", "", "```", f"weft push DIRECTORY NAMESPACE/{config.adapter_name}", "```", ""]
    if config.method == "qalora":
        text += [
            "QA-LoRA sums its inputs over the groups of the base's quantization and merges exactly into the groups' "
            "minima. It means something only over that base.",
            "",
        ]
    else:
        text += ["Stock PEFT loads this directory too, with `PeftModel.from_pretrained`.", ""]
    return "\n".join([*front, "", *text])


def _batch(config: TrainConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation
