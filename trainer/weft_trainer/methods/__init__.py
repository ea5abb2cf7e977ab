"""The training methods, by name. To add one: write its file, list it here, and its options in `weft_trainer.config`.

Several methods may make one kind: they differ in how the same tensors come about.
"""

from __future__ import annotations

from weft_registry.errors import UnsupportedError
from weft_trainer.methods.lora import LoraMethod
from weft_trainer.methods.method import Method
from weft_trainer.methods.prefix import PrefixMethod
from weft_trainer.methods.qalora import QaLoraMethod

METHODS: dict[str, Method] = {method.name: method for method in (LoraMethod(), QaLoraMethod(), PrefixMethod())}


def method_of_kind(kind: str) -> Method:
    """The first method that makes adapters of `kind`; its `bare` restores all of them. Raises `UnsupportedError`."""
    for method in METHODS.values():
        if method.kind == kind:
            return method
    raise UnsupportedError(f"no training method here makes adapters of kind {kind!r}", reason="UNKNOWN_KIND")
