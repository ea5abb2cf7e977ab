"""The adapter kinds that Weft computes, by name. To add one: write its schema, its kind, and list both."""

from __future__ import annotations

from typing import Any

from weft_adapters.kinds.kind import Kind
from weft_adapters.kinds.lora import Lora
from weft_adapters.kinds.prefix import Prefix
from weft_adapters.kinds.qalora import QaLora

KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in (Lora(), QaLora(), Prefix())}
