"""What a run needs between its last step and its artifact, so that a signal loses nothing there either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState

from weft_registry.errors import PreconditionError
from weft_trainer.modeling.adapted import AdaptedModel
from weft_trainer.training import checkpoints, contents
from weft_trainer.training.best import Best
from weft_trainer.training.figures import Figures
from weft_trainer.training.identity import Identity
from weft_trainer.training.interrupt import interrupted
from weft_trainer.training.rank import Rank


@dataclass(frozen=True, eq=False)
class Ending:
    """How far a run has come. Unlike the trainer it does not hold the optimizer, which no step needs any more."""

    directory: Path
    """Where checkpoints go."""
    identity: Identity
    """What they belong to."""
    model: AdaptedModel
    state: TrainerState
    figures: Figures
    best: Best | None
    claimed: bool
    """Whether the checkpoints' directory is this run's."""
    rank: Rank

    def stopped(self, number: int) -> PreconditionError:
        """Saves a checkpoint of the last step, unless there is one, and gives the error of a run that the signal of
        this number ended."""
        step = int(self.state.global_step)
        checkpoint = self.directory / checkpoints.name_of(step)
        if self.rank.writes and not (self.claimed and checkpoints.newest(self.directory) == checkpoint):
            if not self.claimed:
                checkpoints.claim(self.directory, self.identity)
            contents.save(checkpoint, self.model.trainable(), self.figures, self.best)
            self.state.save_to_json(str(checkpoint / checkpoints.LAST_FILE))
        return interrupted(number, step, int(self.state.max_steps), checkpoint)
