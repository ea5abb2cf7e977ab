"""Keeps libraries from writing over the progress display. What they warn about is decided here, by this package."""

from __future__ import annotations

import logging
import os


def quiet_transformers() -> None:
    """Call before the first import of transformers: no hub look-ups, no advice, no progress bars of its own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
