"""The training loop: transformers' Trainer around an `AdaptedModel`.

transformers' own Trainer and not TRL's SFTTrainer: our batches are made of tokens, or of cached hidden states, that
are ready already, and the adapters are not all PEFT's; SFTTrainer would tokenize again, wants a model it can
`generate` with, and computes the head at every position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset as TorchDataset
from transformers import TrainingArguments

from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import Batch
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.objectives.score import Score
from weft_trainer.progress import Reporter
from weft_trainer.training import checkpoints
from weft_trainer.training.adapter_trainer import AdapterTrainer
from weft_trainer.training.ending import Ending
from weft_trainer.training.following import Following, NothingToTrain
from weft_trainer.training.history import History
from weft_trainer.training.identity import Identity
from weft_trainer.training.interrupt import StopRequest
from weft_trainer.training.journal import Journal, JsonLines, TensorBoard
from weft_trainer.training.optimizers import optim_name
from weft_trainer.training.rank import ALONE, Rank


@dataclass(frozen=True)
class Fitted:
    """How a run ended."""

    steps: int
    """The optimizer step of the parameters that were kept, those before a resumption counted."""
    score: Score | None
    """Of those parameters; None without held-out examples."""
    history: History
    """The losses on the way."""
    parameters: int
    """The numbers that were trained, whether or not the artifact holds them."""
    ending: Ending
    trained: Score | None = None
    """Where the adapter only approximates what was trained: the score of that, and `score` is the adapter's."""


def fit(
    model: AdaptedModel,
    make_batch: Callable[[Sequence[int]], Batch],
    num_examples: int,
    evaluate: Callable[[], Score] | None,
    config: TrainConfig,
    identity: Identity,
    scratch: Path,
    report: Reporter,
    request: StopRequest,
    rank: Rank = ALONE,
    *,
    planned: int | None = None,
) -> Fitted:
    """Trains `model` in place, and evaluates it at the end unless the last step has just done so.

    Examples are read in a new order each epoch; where so many steps are `planned`, once, in the order of their numbers.
    Call it when `request` only notes signals.

    Raises `NotFoundError` where there is nothing to resume from, `InvalidInputError` where the checkpoints are another
    run's, `PreconditionError` when training diverges, or is stopped by a signal after saving a checkpoint.
    """
    training, directory = config.training, config.checkpoints
    resume_from = checkpoints.to_resume(directory, identity) if training.resume else None
    if resume_from is None:
        checkpoints.check_room(directory)
    rank.barrier()
    from_step = checkpoints.step_of(resume_from) if resume_from is not None else 0
    # The Trainer wants an evaluation set before it schedules evaluations; `evaluate` has its own.
    indices = _Indices(num_examples)
    trainer = AdapterTrainer(
        config,
        identity,
        evaluate,
        rank,
        request,
        model=model,
        args=_arguments(config, model, scratch / "trainer", planned, evaluates=evaluate is not None),
        data_collator=make_batch,
        train_dataset=indices,
        eval_dataset=indices,
        optimizers=(model.optimizer(training), None),
    )
    trainer.shuffles = planned is None
    for noisy in list(trainer.callback_handler.callbacks):
        if type(noisy).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(type(noisy))
    with ExitStack() as stack:
        if resume_from is not None:
            trainer.take_up(resume_from)
        journals = _journals(trainer, config, from_step) if rank.writes else []
        for journal in journals:
            stack.callback(journal.close)
        trainer.add_callback(Following(trainer, journals, request, report, stack))
        if resume_from is not None and trainer.is_done:
            report.message(f"{resume_from}: training was over; going on behind it")
        else:
            with suppress(NothingToTrain):
                trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        steps, ending = int(trainer.state.global_step), trainer.ending()
        if not trainer.stopped_by and rank.any(bool(request.signal)):
            trainer.stop()
        last = trainer.figures.last_score
        if not trainer.stopped_by and evaluate is not None and (last is None or last[0] != steps):
            trainer.evaluate()
        if trainer.stopped_by:
            error = ending.stopped(trainer.stopped_by)
            # Whoever raises first ends the others.
            rank.barrier()
            raise error
        last = trainer.figures.last_score
    model.eval()
    history = History(_points(trainer.state.log_history, "loss"), _points(trainer.state.log_history, "eval_loss"))
    parameters = sum(parameter.numel() for parameter in model.trainable().values())
    best = trainer.best
    if best is not None and best.step != steps:
        best.restore(model.trainable())
        report.message(f"step {best.step} had the lowest held-out loss of {steps} steps: its parameters are kept")
        return Fitted(best.step, best.score, history, parameters, ending)
    return Fitted(steps, last[1] if last else None, history, parameters, ending)


def _arguments(
    config: TrainConfig, model: AdaptedModel, directory: Path, planned: int | None, *, evaluates: bool
) -> TrainingArguments:
    training = config.training
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=planned or training.steps or -1,
        num_train_epochs=training.passes,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup if training.warmup < 1 else 0.999,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=optim_name(config),
        logging_steps=training.log_every,
        eval_strategy="steps" if training.eval_every and evaluates else "no",
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
        # The buffers are the base's int4 weights, which every process has and none changes.
        ddp_broadcast_buffers=False,
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        # One process would spread over all GPUs by nn.DataParallel, which `training.devices` did not ask for.
        arguments._n_gpu = 1
    return arguments


def _journals(trainer: AdapterTrainer, config: TrainConfig, from_step: int) -> list[Journal]:
    journals: list[Journal] = []
    if config.training.save_every or config.training.resume:
        trainer.claim()
        journals.append(JsonLines(config.checkpoints, from_step, evaluated=trainer.is_evaluated))
    if config.tensorboard is not None:
        journals.append(TensorBoard(config.tensorboard, from_step))
    return journals


def _points(log_history: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry[name])) for entry in log_history if name in entry]


class _Indices(TorchDataset[int]):
    """The numbers of the examples: the collator makes the batch from them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index
