"""The training methods, by name. To add one: write its file, list it here, and its options in
`weft_trainer.config.run`.

Several methods may make one kind: they differ in how the same tensors come about. Imports `modeling`, `data` and
`config`.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft_registry.errors import UnsupportedError
from weft_trainer.methods.bottleneck import HoulsbyMethod, ParallelMethod, PfeifferMethod
from weft_trainer.methods.dora import DoraMethod
from weft_trainer.methods.full import FullMethod, PartialMethod
from weft_trainer.methods.fusion import FusionMethod
from weft_trainer.methods.galore import GaLoreMethod
from weft_trainer.methods.ia3 import Ia3Method
from weft_trainer.methods.lora import LoraMethod
from weft_trainer.methods.method import CompositeMethod, Method
from weft_trainer.methods.p_tuning import PTuningMethod
from weft_trainer.methods.p_tuning_v2 import PTuningV2Method
from weft_trainer.methods.parts import Part
from weft_trainer.methods.prefix import PrefixMethod
from weft_trainer.methods.prompt_tuning import PromptTuningMethod
from weft_trainer.methods.qalora import QaLoraMethod
from weft_trainer.methods.qlora import QLoraMethod

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LoraMethod(),
        QLoraMethod(),
        DoraMethod(),
        Ia3Method(),
        QaLoraMethod(),
        PrefixMethod(),
        PTuningV2Method(),
        PromptTuningMethod(),
        PTuningMethod(),
        HoulsbyMethod(),
        PfeifferMethod(),
        ParallelMethod(),
        FusionMethod(),
        FullMethod(),
        PartialMethod(),
        GaLoreMethod(),
    )
}


def method_of_kind(kind: str) -> Method:
    """The first method that makes adapters of `kind`; its `bare` restores all of them. Raises `UnsupportedError`."""
    for method in METHODS.values():
        if method.kind == kind:
            return method
    raise UnsupportedError(f"no training method here makes adapters of kind {kind!r}", reason="UNKNOWN_KIND")


def over(method: Method, parts: Sequence[Part]) -> Method:
    """The method as it makes adapters over `parts`; as it is where there are none."""
    if not parts:
        return method
    assert isinstance(method, CompositeMethod), method.name
    return method.over(parts)
