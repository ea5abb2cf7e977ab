"""A key that is unknown where it stands: where else in the configuration it is known, nearly so, or by another name.

Knows the dataclasses' fields, and what other programs call them.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from typing import Any

from weft_registry.names import nearest

# By the names in PEFT's configurations, transformers' TrainingArguments, and the files of Axolotl and LLaMA-Factory.
_NAMED_THERE: Mapping[str, str] = {
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "micro_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "logging_steps": "log_every",
    "eval_steps": "eval_every",
    "save_steps": "save_every",
    "save_total_limit": "keep_checkpoints",
    "resume_from_checkpoint": "resume",
    "base_model": "base",
    "model_name_or_path": "base",
    "output_dir": "output",
    "dataset": "train",
    "datasets": "train",
    "val_set_size": "eval_fraction",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "sample_packing": "packing",
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
}
_ALIKE = 0.7
"""The least likeness of a key to one that stands elsewhere, as difflib has it. Short keys are like anything."""


def paths(cls: type[Any], blocks: Mapping[str, type[Any]], where: str = "") -> Iterator[str]:
    """The dotted paths of all that a `cls` may say, within what are dataclasses themselves too. `blocks` has, by its
    path, the dataclass of a block that may be one of several."""
    kinds = typing.get_type_hints(cls)
    for field in fields(cls):
        path = f"{where}.{field.name}" if where else field.name
        yield path
        kind = blocks.get(path, kinds[field.name])
        if is_dataclass(kind) and isinstance(kind, type):
            yield from paths(kind, blocks, path)


def hint(wrong: str, known: Sequence[str]) -> str | None:
    """What to do about the key at the path `wrong`, which is not `known` there; None where no other place is nearer."""
    if wrong in known:
        *blocks, text = f"{wrong}: ...".split(".", wrong.count("."))
        for block in reversed(blocks):
            text = f"{block}: {{{text}}}"
        return f"dots reach inside on the command line alone; write {text}"
    here, _, key = wrong.rpartition(".")
    if places := _places(key, known):
        return f"its place is {' or '.join(places)}"
    if places := _places(_NAMED_THERE.get(key, ""), known):
        return f"that is {' or '.join(places)}"
    beside = [_last(path) for path in known if path.rpartition(".")[0] == here]
    near = nearest(key, [_last(path) for path in known], most=1)
    if not near or not beside or near[0] in beside or SequenceMatcher(None, key, near[0]).ratio() < _ALIKE:
        return None
    return f"nearest: {', '.join(path for path in known if _last(path) == near[0])}"


def _places(key: str, known: Sequence[str]) -> list[str]:
    return [path if "." in path else f"{path} at the top" for path in known if _last(path) == key]


def _last(path: str) -> str:
    return path.rpartition(".")[2]
