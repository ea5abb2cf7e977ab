"""transformers' Trainer for an `AdaptedModel`: scoring, early stopping, checkpoints, stops and divergence are ours.

Checkpoints hold only the trainable parameters (with a reparameterizing network, which the artifact does not keep), the
optimizer, the schedule and the random state, so that a resumed run continues bit for bit. A run whose last step is done
needs none of the latter three.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerState

from weft_registry.errors import PreconditionError
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import Batch
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.objectives.score import Score
from weft_trainer.training import checkpoints, contents
from weft_trainer.training.best import Best
from weft_trainer.training.ending import Ending
from weft_trainer.training.figures import Figures
from weft_trainer.training.identity import Identity
from weft_trainer.training.interrupt import Stopped, StopRequest
from weft_trainer.training.rank import Rank


class AdapterTrainer(Trainer):
    """Trainer with our scoring, our early stopping, and checkpoints of the trainable parameters only."""

    def __init__(
        self,
        config: TrainConfig,
        identity: Identity,
        scorer: Callable[[], Score] | None,
        rank: Rank,
        request: StopRequest,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._config, self._identity, self._scorer, self.rank, self._request = config, identity, scorer, rank, request
        self.claimed = config.training.resume
        """Whether the checkpoints' directory is this run's."""
        self.method = config.method
        patience = config.training.early_stopping_patience
        self.best = Best(patience) if patience is not None else None
        self.tokens_seen = 0
        """By this process, since it began."""
        self.figures = Figures(rank)
        self.stopped_by = 0
        """The signal that ended the run; 0 for none."""
        self.shuffles = True
        """Whether examples are read in random order, and not in that of their numbers."""

    @property
    def _adapted(self) -> AdaptedModel:
        assert isinstance(self.model, AdaptedModel), "fit passes one"
        return self.model

    def get_train_dataloader(self) -> Any:
        """The Trainer's."""
        loader: Any = super().get_train_dataloader()
        if self.rank.index:
            # Now that the order of examples has its seed, the same one everywhere: dropout draws its own numbers here.
            torch.manual_seed(self.args.seed + self.rank.index)
        return loader

    def training_step(self, model: Any, inputs: Batch, *rest: Any, **more: Any) -> Tensor:
        """One forward and backward pass. Raises `PreconditionError` for a loss that is no number."""
        self.tokens_seen += int(inputs["attention_mask"].sum())
        loss: Tensor = super().training_step(model, inputs, *rest, **more)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {float(loss)}")
        self.figures.add(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        # Before the optimizer steps: one step with such gradients ruins every parameter.
        if norm is not None and not math.isfinite(float(norm)):
            raise self._diverged(f"the norm of the gradients is {float(norm)}")
        return norm

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        # The Trainer counts labels; an objective may count something else, such as pairs.
        counted = [torch.zeros(self._adapted.objective.items(batch)) for batch in batch_samples]
        standing_in = [{"labels": items, "shift_labels": items} for items in counted]
        return super()._get_num_items_in_batch(standing_in, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's, with the losses of the steps since the last log though a resumption is among them."""
        if "loss" in logs:
            logs["loss"] = self.figures.take(int(self.state.global_step))
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        """Scores the held-out examples, and decides whether to stop early. A signal cuts it off: then the run stops
        here, without figures."""
        result, step = self._scored(), int(self.state.global_step)
        if self.rank.any(result is None):
            self.stop()
            return {}
        assert result is not None, "no process was stopped"
        if not math.isfinite(result.loss):
            raise self._diverged(f"the held-out loss is {result.loss}", step)
        metrics = {f"eval_{name}": value for name, value in result.figures().items()}
        self.log(dict(metrics))
        # Clears the request to evaluate, which would otherwise be met once more at the end of the epoch.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.figures.last_score = (step, result)
        if self.best is not None and self.rank.any(self.best.offer(step, result, self._adapted.trainable())):
            self.control.should_training_stop = True
        return metrics

    def _scored(self) -> Score | None:
        assert self._scorer is not None, "evaluation is only scheduled with a scorer"
        try:
            with self._request.at_once():
                return self._scorer()
        except Stopped:
            return None

    def stop(self) -> None:
        """Ends the run with a checkpoint of this step. Another process may have had the signal first; then this one
        takes part in its stop."""
        self.stopped_by = self._request.signal or signal.SIGTERM
        self.control.should_save = self.control.should_training_stop = True
        # Whoever stops a process does not wait for an evaluation; the resumed run begins with it.
        self.control.should_evaluate = False

    def ending(self) -> Ending:
        """How far it has come."""
        directory, model, claimed = self._config.checkpoints, self._adapted, self.claimed
        return Ending(directory, self._identity, model, self.state, self.figures, self.best, claimed, self.rank)

    @property
    def is_done(self) -> bool:
        """Whether its last step is behind it."""
        return self.state.global_step >= self.state.max_steps or (self.best is not None and self.best.is_over)

    @property
    def is_evaluated(self) -> bool:
        """Whether the parameters of this step have been."""
        step = self.state.global_step
        return any(entry["step"] == step and "eval_loss" in entry for entry in self.state.log_history)

    def take_up(self, checkpoint: Path) -> None:
        """Puts a checkpoint's parameters and figures back, and says in `state` how far it had come."""
        self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.LAST_FILE))
        self._load_from_checkpoint(str(checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.shuffles:
            return super()._get_train_sampler(train_dataset)
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type] # it has a length

    def claim(self) -> None:
        """Makes the checkpoints' directory this run's, once."""
        if not self.claimed:
            checkpoints.claim(self._config.checkpoints, self._identity)
            self.claimed = True

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._config.checkpoints)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.rank.writes:
            self.claim()
        self.rank.barrier()
        self.figures.settle()
        super()._save_checkpoint(model, trial)
        self.rank.barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(str(output_dir or self.args.output_dir))
        parameters = self._adapted.trainable()
        ruined = next((name for name, tensor in parameters.items() if not torch.isfinite(tensor).all()), None)
        if ruined is not None:
            raise self._diverged(f"{ruined} is not finite", int(self.state.global_step))
        contents.save(directory, parameters, self.figures, self.best)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Every process writes its own; the file that makes a checkpoint whole comes after all of them.
        self.rank.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        contents.load(Path(resume_from_checkpoint), self._adapted.trainable(), self.figures, self.best)

    def _diverged(self, what: str, step: int | None = None) -> PreconditionError:
        training = self._config.training
        step = int(self.state.global_step) + 1 if step is None else step
        losses = [entry for entry in self.state.log_history if "loss" in entry]
        before = f" (it was {losses[-1]['loss']:.4g} at step {losses[-1]['step']})" if losses else ""
        good = checkpoints.newest(self._config.checkpoints) if self.claimed else None
        kept = f"; {good} is the last good checkpoint, and stays" if good is not None else ""
        return PreconditionError(
            f"training diverged at step {step}: {what}{before}{kept}. Start again with a "
            f"lower training.learning_rate (now {training.learning_rate:g}), a larger training.warmup (now "
            f"{training.warmup:g}), or a training.max_grad_norm (now {training.max_grad_norm:g}; 0 is none)",
            reason="DIVERGED",
        )
