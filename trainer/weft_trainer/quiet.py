"""How libraries behave in a training process: what they write, and how they wait. To be decided before they load."""

from __future__ import annotations

import logging
import os
import warnings

from weft_adapters.threads import spin_briefly


def quiet_transformers() -> None:
    """Call before the first import of transformers: no hub look-ups, no advice, no progress bars of its own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    spin_briefly()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # PEFT asks transformers by a name that transformers has renamed; neither is ours to change.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # What accelerate would have instead sends the base's weights from process to process at the start.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*", category=FutureWarning)
