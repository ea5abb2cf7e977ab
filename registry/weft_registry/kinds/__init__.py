"""The kinds a registry can validate, by name."""

from __future__ import annotations

from typing import Any

from weft_registry.errors import UnsupportedError
from weft_registry.kinds.bottleneck import BottleneckSchema
from weft_registry.kinds.dora import DoraSchema
from weft_registry.kinds.fusion import FusionSchema
from weft_registry.kinds.ia3 import Ia3Schema
from weft_registry.kinds.lora import LoraSchema
from weft_registry.kinds.prefix import PrefixSchema
from weft_registry.kinds.prompt import PromptSchema
from weft_registry.kinds.qalora import QaLoraSchema
from weft_registry.kinds.schema import KindSchema, PeftSchema

KIND_SCHEMAS: dict[str, KindSchema[Any]] = {
    schema.name: schema
    for schema in (
        LoraSchema(),
        DoraSchema(),
        Ia3Schema(),
        QaLoraSchema(),
        PrefixSchema(),
        PromptSchema(),
        BottleneckSchema(),
        FusionSchema(),
    )
}


def kind_schema(name: str) -> KindSchema[Any]:
    """The schema of kind `name`. Raises `UnsupportedError` naming the kinds there are."""
    schema = KIND_SCHEMAS.get(name)
    if schema is None:
        raise UnsupportedError(
            f"unknown adapter kind {name[:100]!r}; known: {', '.join(sorted(KIND_SCHEMAS))}",
            reason="UNKNOWN_KIND",
            metadata={"kind": name[:100]},
        )
    return schema


def peft_schema(name: str) -> PeftSchema[Any]:
    """The schema of a kind that PEFT has too. Raises `UnsupportedError` for any other."""
    schema = kind_schema(name)
    if not isinstance(schema, PeftSchema):
        raise UnsupportedError(
            f"PEFT has no adapters of the kind {name}: its artifacts hold no adapter_config.json, and only Weft "
            "computes them",
            reason="NO_PEFT_FORM",
            metadata={"kind": name},
        )
    return schema
