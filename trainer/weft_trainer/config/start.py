"""Where a run begins at an adapter that is there already: what else its configuration may then say. No torch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from weft_trainer.config.adapter import FullOptions, PTuningOptions
from weft_trainer.config.strict import ConfigError

_FIRST_VALUES = ("init", "original", "init_text", "init_vocabulary", "init_scale")
"""The settings that decide first values, by their names in `weft_trainer.config.adapter`."""


def check_start(method: str, family: type[Any], options: Any) -> None:
    """Raises `ConfigError` for a method that cannot begin at an adapter, and for settings that `start` leaves without
    effect. `family` is the type of the method's options; None: they are left out."""
    if issubclass(family, FullOptions):
        raise ConfigError(
            "start",
            f"{method} trains the base's own weights, which an adapter does not hold; train the adapter on with the "
            "method that made it, or with lora what full, partial and galore made",
        )
    if issubclass(family, PTuningOptions):
        raise ConfigError(
            "start",
            "p_tuning trains an encoder, and an artifact holds the prompt that it computed; train that on with method: "
            "prompt_tuning",
        )
    if options is None:
        return
    if getattr(options, "prefix_projection", False):
        raise ConfigError(
            "adapter.prefix_projection",
            "an artifact holds the prefix that the MLP computed, not the MLP, so none can train on from start; leave "
            "it out",
        )
    for field in fields(options):
        if field.name in _FIRST_VALUES and getattr(options, field.name) != field.default:
            raise ConfigError(f"adapter.{field.name}", "without effect: start decides the first values; leave it out")
