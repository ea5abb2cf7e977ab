"""PEFT's patterns: matched as PEFT matches them, and never run when they could run for ever."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from weft_registry.errors import InvalidInputError
from weft_registry.patterns import MAX_EXPRESSIONS, MAX_PATTERNS, ModulePatterns

MODULES = [
    f"{root}model.layers.{layer}.{name}"
    for root in ("", "language_")
    for layer in (0, 1, 10, 11)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.experts.1.down_proj")
]


def reference(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """What PEFT 0.21.2 does (`peft.utils.other.get_pattern_key`)."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return patterns.get(module, default)


KEYS = [
    "q_proj",
    "down_proj",
    "self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "^model.layers.1.self_attn.q_proj",
    "^q_proj",
    "q_proj|k_proj",
    "layers.1.*",
    r"layers\.1\..*",
    r"model\.layers\.[0-9]+\.mlp\.down_proj",
    r".*\.down_proj",
    "[qk]_proj",
    "(self_attn|mlp).q_proj",
    r"layers\.(0|10)\.self_attn\.q_proj",
    "proj",
    "layers.1",
    "1.self.attn.q_proj",
    "q_proj$",
]


def test_the_first_key_that_peft_would_take_is_taken() -> None:
    for keys in itertools.chain(((key,) for key in KEYS), itertools.permutations(KEYS, 2)):
        patterns = {key: index for index, key in enumerate(keys)}
        ours = ModulePatterns("rank_pattern", patterns)
        for module in MODULES:
            assert ours.get(module, None) == reference(patterns, module, None), (keys, module)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+",
        "(?i)A",
        "(a*)*b",
        "(a|b*)+",
        r"(.*)(.*)(.*)x",
        r"(a)\1",
        "(?=a)b",
        "(?<!a)b",
        "((a+)b)*",
        "(",
        "a**",
        "x" * 300,
        "",
    ],
)
def test_an_expression_that_could_run_for_ever_is_refused(key: str) -> None:
    with pytest.raises(InvalidInputError, match="rank_pattern"):
        ModulePatterns("rank_pattern", {key: 4})


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="patterns"):
        ModulePatterns("rank_pattern", {f"a{i}": 1 for i in range(MAX_PATTERNS + 1)})
    with pytest.raises(InvalidInputError, match="regular expressions"):
        ModulePatterns("rank_pattern", {f"a{i}[01]": 1 for i in range(MAX_EXPRESSIONS + 1)})
