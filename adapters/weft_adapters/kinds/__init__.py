"""The adapter kinds that Weft computes, by name. To add one: write its schema, its kind, and list both."""

from __future__ import annotations

from typing import Any

from weft_adapters.kinds.bottleneck import Bottleneck
from weft_adapters.kinds.dora import Dora
from weft_adapters.kinds.fusion import Fusion
from weft_adapters.kinds.ia3 import Ia3
from weft_adapters.kinds.kind import Kind
from weft_adapters.kinds.lora import Lora
from weft_adapters.kinds.prefix import Prefix
from weft_adapters.kinds.prompt import Prompt
from weft_adapters.kinds.qalora import QaLora

KINDS: dict[str, Kind[Any]] = {
    kind.name: kind for kind in (Lora(), Dora(), Ia3(), QaLora(), Prefix(), Prompt(), Bottleneck(), Fusion())
}
