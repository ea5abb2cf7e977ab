"""QLoRA: LoRA by its paper's name over the int4 base, and what NF4 needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import AddedBase
from weft_registry import artifact
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_trainer.config.run import TrainConfig, parse
from weft_trainer.methods import METHODS, method_of_kind
from weft_trainer.modeling import nf4
from weft_trainer.progress import QuietReporter
from weft_trainer.run import run


def test_qlora_on_int4_is_lora_to_the_bit_and_makes_a_lora(
    tiny_base: Callable[..., AddedBase],
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    base = tiny_base()
    made = {}
    for method in ("lora", "qlora"):
        directory = run(make_config(base, method, {"r": 4}, steps=3), base)
        assert artifact.read(directory).kind == "lora"
        made[method] = (directory / "adapter_model.safetensors").read_bytes()
    assert made["lora"] == made["qlora"]
    assert method_of_kind("lora") is METHODS["lora"]


def test_nf4_is_refused_before_anything_is_loaded_where_it_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    # No base of that name, and no such file: neither may be looked for before.
    document: dict[str, Any] = {"base": "none", "method": "qlora", "output": "o", "data": {"train": "none.jsonl"}}
    config = parse({**document, "adapter": {"quantization": "nf4"}})
    monkeypatch.setattr(nf4, "find_spec", lambda name: None)
    with pytest.raises(PreconditionError, match=r"nf4 .* bitsandbytes.*quantization: int4"):
        run(config, QuietReporter())


def test_settings_that_nf4_would_ignore_are_refused() -> None:
    document: dict[str, Any] = {"base": "b", "method": "qlora", "output": "o", "data": {"train": "t.jsonl"}}
    with pytest.raises(InvalidInputError, match=r"adapter\.init: loftq"):
        parse({**document, "adapter": {"quantization": "nf4", "init": "loftq", "original": "x"}})
    with pytest.raises(InvalidInputError, match=r"adapter\.quantization"):
        parse({**document, "adapter": {"quantization": "fp4"}})
    with pytest.raises(InvalidInputError, match=r"training\.dense_base"):
        nf4.check(parse({**document, "adapter": {"quantization": "nf4"}, "training": {"dense_base": True}}))
