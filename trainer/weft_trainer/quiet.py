"""Keeps libraries from writing over the progress display. What they warn about is decided here, by this package."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_transformers() -> None:
    """Call before the first import of transformers: no hub look-ups, no advice, no progress bars of its own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # PEFT asks transformers by a name that transformers has renamed; neither is ours to change.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
