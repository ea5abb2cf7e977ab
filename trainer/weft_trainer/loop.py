"""The training loop: transformers' Trainer around an `AdaptedModel`.

transformers' own Trainer and not TRL's SFTTrainer: our batches are made of tokens, or of cached hidden states, that
are ready already, and the adapters are not all PEFT's; SFTTrainer would tokenize again, wants a model it can
`generate` with, and computes the head at every position. Scoring is `weft_trainer.score`; checkpoints hold only the
trainable parameters (with a reparameterizing MLP, which the artifact does not keep), the optimizer, the schedule and
the random state, so that a resumed run continues bit for bit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError
from weft_trainer.adapted import AdaptedModel, load_exactly
from weft_trainer.batches import Batch
from weft_trainer.config import TrainConfig
from weft_trainer.progress import Reporter, Task
from weft_trainer.score import Score

STATE_FILE = "trainable.safetensors"
CONFIG_FILE = "config.json"
# What may change between a run and its continuation without making it another run.
_FREE_KEYS = ("resume", "log_every", "keep_checkpoints", "save_every")


@dataclass(frozen=True)
class Fitted:
    """How a run ended."""

    steps: int
    """Optimizer steps in all, those before a resumption included."""
    score: Score | None
    """Of the final parameters; None without held-out examples."""


def fit(
    model: AdaptedModel,
    make_batch: Callable[[Sequence[int]], Batch],
    num_examples: int,
    evaluate: Callable[[], Score] | None,
    config: TrainConfig,
    scratch: Path,
    report: Reporter,
) -> Fitted:
    """Trains `model` in place, and evaluates it at the end unless the last step has just done so.

    Raises `NotFoundError` where there is nothing to resume from, `InvalidInputError` where the checkpoints are another
    configuration's, `PreconditionError` when training diverges.
    """
    training = config.training
    checkpoints = config.checkpoints if training.save_every or training.resume else scratch / "unused"
    resume_from = _prepare_checkpoints(checkpoints, config)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=training.steps or -1,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup if training.warmup < 1 else 0.999,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.log_every,
        eval_strategy="steps" if training.eval_every and evaluate else "no",
        eval_steps=training.eval_every,
        save_strategy="steps" if training.save_every else "no",
        save_steps=training.save_every or 500,
        save_total_limit=training.keep_checkpoints,
        seed=training.seed,
        use_cpu=model.base.device.type == "cpu",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    indices = _Indices(num_examples)
    # The Trainer wants an evaluation set before it schedules evaluations; `evaluate` has its own.
    trainer = _AdapterTrainer(
        evaluate, model=model, args=arguments, data_collator=make_batch, train_dataset=indices, eval_dataset=indices
    )
    for noisy in list(trainer.callback_handler.callbacks):
        if type(noisy).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(type(noisy))
    per_epoch = -(-num_examples // (training.batch_size * training.gradient_accumulation))
    total = training.steps or max(1, round(training.epochs * per_epoch))
    with report.task(f"training {config.method}", total) as task:
        trainer.add_callback(_Progress(trainer, task, report))
        trainer.train(resume_from_checkpoint=resume_from)
    model.eval()
    steps = int(trainer.state.global_step)
    if trainer.last_score is not None and trainer.last_score[0] == steps:
        return Fitted(steps, trainer.last_score[1])
    return Fitted(steps, evaluate() if evaluate is not None else None)


class _Indices(TorchDataset[int]):
    """The numbers of the examples: the collator makes the batch from them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class _AdapterTrainer(Trainer):
    """Trainer with our scoring, and with checkpoints of the trainable parameters only."""

    def __init__(self, scorer: Callable[[], Score] | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._scorer = scorer
        self.tokens_seen = 0
        self.last_score: tuple[int, Score] | None = None

    @property
    def _adapted(self) -> AdaptedModel:
        assert isinstance(self.model, AdaptedModel), "fit passes one"
        return self.model

    def training_step(self, model: Any, inputs: Batch, *rest: Any, **more: Any) -> Tensor:
        self.tokens_seen += int(inputs["attention_mask"].sum())
        loss: Tensor = super().training_step(model, inputs, *rest, **more)
        if not torch.isfinite(loss):
            raise PreconditionError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1}: lower training.learning_rate or "
                "raise training.warmup",
                reason="DIVERGED",
            )
        return loss

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        assert self._scorer is not None, "evaluation is only scheduled with a scorer"
        result = self._scorer()
        metrics = {"eval_loss": result.loss, "eval_exact_match": result.exact_match}
        self.log(dict(metrics))
        # Clears the request to evaluate, which would otherwise be met once more at the end of the epoch.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.last_score = (int(self.state.global_step), result)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(str(output_dir or self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._adapted.trainable().items()}
        save_file(tensors, str(directory / STATE_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_exactly(self._adapted.trainable(), load_file(str(Path(resume_from_checkpoint) / STATE_FILE)))


class _Progress(TrainerCallback):
    """Carries the Trainer's events to the reporter."""

    def __init__(self, trainer: _AdapterTrainer, task: Task, report: Reporter) -> None:
        self._trainer, self._task, self._report = trainer, task, report
        self._loss = ""
        self._start = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._start = time.monotonic()
        if state.global_step:
            self._task.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        rate = self._trainer.tokens_seen / max(time.monotonic() - self._start, 1e-9)
        self._task.advance(1, f"{self._loss}{rate:.0f} tokens/s")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if logs and "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.4f}, "
        if logs and "eval_loss" in logs:
            share, loss = logs["eval_exact_match"], logs["eval_loss"]
            self._report.message(f"step {state.global_step}: eval loss {loss:.4f}, exact match {share:.1%}")


def _prepare_checkpoints(directory: Path, config: TrainConfig) -> str | None:
    """The checkpoint to go on from, if the run resumes; otherwise an empty directory for its own."""
    record = directory / CONFIG_FILE
    identity = _identity(config)
    if config.training.resume:
        last = _newest(directory) if record.is_file() else None
        if last is None:
            raise NotFoundError(
                f"training.resume: no checkpoint in {directory}; start without resume, with training.save_every"
            )
        before = json.loads(record.read_text())
        changed = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
        if changed:
            raise InvalidInputError(
                f"training.resume: the checkpoints in {directory} are of another configuration: {', '.join(changed)} "
                "changed; restore it, or start without resume"
            )
        return last
    if directory.is_dir() and any(directory.iterdir()):
        if not record.is_file():
            raise InvalidInputError(f"{directory} exists and holds no checkpoints of ours; move it away")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(identity, indent=1))
    return None


def _newest(directory: Path) -> str | None:
    found: str | None = get_last_checkpoint(str(directory))  # type: ignore[no-untyped-call]
    return found


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What makes two runs the same one, flat: {"training.seed": "0", ...}."""
    flat: dict[str, Any] = {}
    for key, value in replace(config, output=Path(config.output.name)).as_json().items():
        nested = value if isinstance(value, dict) and key in ("data", "adapter", "training") else {"": value}
        flat.update({f"{key}.{k}" if k else key: v for k, v in nested.items() if k not in _FREE_KEYS})
    return flat
