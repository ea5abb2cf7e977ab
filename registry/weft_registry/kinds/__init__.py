"""The kinds a registry can validate, by name."""

from __future__ import annotations

from typing import Any

from weft_registry.errors import UnsupportedError
from weft_registry.kinds.lora import LoraSchema
from weft_registry.kinds.prefix import PrefixSchema
from weft_registry.kinds.qalora import QaLoraSchema
from weft_registry.kinds.schema import KindSchema

KIND_SCHEMAS: dict[str, KindSchema[Any]] = {
    schema.name: schema for schema in (LoraSchema(), QaLoraSchema(), PrefixSchema())
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
