"""Carries the Trainer's events to the reporter and the journals, and a signal's wish to stop back to the Trainer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from weft_trainer.progress import Reporter, Task
from weft_trainer.training.interrupt import StopRequest
from weft_trainer.training.journal import Journal, figures

if TYPE_CHECKING:
    from weft_trainer.training.adapter_trainer import AdapterTrainer


class NothingToTrain(Exception):  # noqa: N818 # nothing is wrong
    """The evaluation that a resumed run begins with has ended it. The Trainer itself would take a step first."""


class Following(TrainerCallback):
    """One per run. `stack` holds the progress task until the run is over."""

    def __init__(
        self,
        trainer: AdapterTrainer,
        journals: Sequence[Journal],
        request: StopRequest,
        report: Reporter,
        stack: ExitStack,
    ) -> None:
        self._trainer, self._journals, self._request = trainer, journals, request
        self._report, self._stack = report, stack
        self._task: Task | None = None
        self._loss = ""
        self._start = time.monotonic()
        self._logged = (self._start, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Shows the task, and catches up on an evaluation that a signal left out. Raises `NothingToTrain` if that ends
        the run: by early stopping, or because another signal cuts it off."""
        method = self._trainer.method
        self._task = self._stack.enter_context(self._report.task(f"training {method}", int(state.max_steps)))
        step = int(state.global_step)
        if step:
            self._task.skip(step)
            due = args.eval_strategy != "no" and step % args.eval_steps == 0
            if due and not self._trainer.is_evaluated:
                self._trainer.evaluate()
                if self._trainer.control.should_training_stop:
                    raise NothingToTrain
        self._start = time.monotonic()
        self._logged = (self._start, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Counts the step; and if a signal came, asks for a checkpoint and the end."""
        assert self._task is not None, "training began"
        seen = self._trainer.tokens_seen * self._trainer.rank.count
        rate = seen / max(time.monotonic() - self._start, 1e-9)
        self._task.advance(1, f"{self._loss}{rate:.0f} tokens/s")
        last = state.global_step >= state.max_steps
        control.should_log = control.should_log or last
        if not last and self._trainer.rank.any(bool(self._request.signal)):
            self._trainer.stop()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Shows and writes the figures."""
        values = figures(logs or {})
        if "loss" in values:
            self._loss = f"loss {values['loss']:.4f}, "
            now, seen = time.monotonic(), self._trainer.tokens_seen * self._trainer.rank.count
            values["tokens_per_s"] = round((seen - self._logged[1]) / max(now - self._logged[0], 1e-9), 1)
            self._logged = (now, seen)
        if "eval_loss" in values:
            self._report.message(f"step {state.global_step}: {_evaluated(values)}")
        if values:
            for journal in self._journals:
                journal.write(int(state.global_step), values)


def _evaluated(values: Mapping[str, float]) -> str:
    text = f"eval loss {values['eval_loss']:.4f}, exact match {values['eval_exact_match']:.1%}"
    if "eval_reward_accuracy" in values:
        preferred, margin = values["eval_reward_accuracy"], values["eval_reward_margin"]
        text += f", chosen preferred {preferred:.1%}, reward margin {margin:.4f}"
    return text
