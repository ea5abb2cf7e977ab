"""Training one adapter, in this process or in several."""

from __future__ import annotations

from pathlib import Path

from weft_registry.home import Home
from weft_trainer.config.run import TrainConfig
from weft_trainer.parallel import check_devices, train_together
from weft_trainer.progress import Reporter
from weft_trainer.run import run


def train(config: TrainConfig, report: Reporter, home: Home | None = None) -> Path:
    """Trains one adapter, in as many processes as `training.devices` says, and returns the artifact's directory.

    Raises the errors of `weft_registry.errors`: `NotFoundError` for a base or file that is not there,
    `InvalidInputError` for a configuration or data that cannot be, `PreconditionError` when training diverges, for what
    is not installed, and for a run that a signal stopped (after saving what there was), `ExhaustedError` when memory
    runs out.
    """
    check_devices(config.training.devices)
    if config.training.devices > 1:
        return train_together(config, report, home)
    return run(config, report, home)
