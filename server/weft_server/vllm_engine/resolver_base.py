"""Whether an adapter belongs to the model that vLLM serves, as far as that model's directory says what it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from weft_adapters.base.config import ModelConfig
from weft_registry.errors import InvalidInputError, PreconditionError, UnsupportedError
from weft_registry.manifest import Manifest
from weft_server.vllm_engine.base.names import METHOD

_log = logging.getLogger(__name__)


def check_base(manifest: Manifest, model: str) -> None:
    """Compares the adapter's base with the model in the directory `model`.

    A model in Weft's own format states its weights' fingerprint, which must be the base's. Any other states its
    configuration, which must compute the same: its weights may be those from before quantization, to which the adapter
    fits as well as quantization was good. A model that is no directory here states nothing.

    Raises `PreconditionError` (`BASE_MISMATCH`) when they differ.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        _log.warning("%s is no model directory: nothing tells whether %s belongs to it", model, manifest.name)
        return
    config: dict[str, Any] = json.loads(path.read_text())
    quantization = config.pop("quantization_config", None) or {}
    if quantization.get("quant_method") == METHOD:
        _compare("weights_sha256", manifest, quantization.get("fingerprint"))
    try:
        found = ModelConfig.from_json(config).sha256()
    except (InvalidInputError, UnsupportedError) as error:
        raise PreconditionError(
            f"the adapter's base is {manifest.base.id} ({manifest.base.arch}), not the served model: {error.message}",
            reason="BASE_MISMATCH",
        ) from error
    _compare("config_sha256", manifest, found)


def _compare(field: str, manifest: Manifest, served: str | None) -> None:
    wanted = getattr(manifest.base, field)
    if served != wanted:
        raise PreconditionError(
            f"the adapter was trained on {manifest.base.id} ({field} {wanted}), and the served model is another "
            f"({served})",
            reason="BASE_MISMATCH",
            metadata={"field": field, "manifest": wanted, "served": str(served)},
        )
