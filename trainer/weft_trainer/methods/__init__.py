"""The training methods, by name. To add one: write its file, list it here, and its options in `weft_trainer.config`."""

from __future__ import annotations

from weft_trainer.methods.lora import LoraMethod
from weft_trainer.methods.method import Method
from weft_trainer.methods.prefix import PrefixMethod
from weft_trainer.methods.qalora import QaLoraMethod

METHODS: dict[str, Method] = {method.kind: method for method in (LoraMethod(), QaLoraMethod(), PrefixMethod())}
