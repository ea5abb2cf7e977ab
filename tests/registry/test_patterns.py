"""PEFT's patterns: matched as PEFT matches them, and never run when they could run for ever."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from weft_registry.errors import InvalidInputError
from weft_registry.patterns import MAX_EXPRESSIONS, MAX_PATTERNS, ModulePatterns, check_selector

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
    "self_attn\\.q_proj",
    "self.attn\\.q_proj",
    "(layers.1.)?self_attn.q_proj",
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
        "(a|b|ab)*c",
        "(a|aa)" * 10,
        "(a?)" * 7,
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


def test_a_key_for_every_module_of_a_large_model_is_quickly_found() -> None:
    modules = [
        f"model.layers.{layer}.mlp.experts.{e}.{m}_proj" for layer in range(30) for e in range(60) for m in "abc"
    ]
    patterns = ModulePatterns("rank_pattern", {module: index for index, module in enumerate(modules)})
    assert [patterns.get(module, None) for module in modules] == list(range(len(modules)))


def test_modules_times_keys_have_a_budget() -> None:
    patterns = ModulePatterns("alpha_pattern", {f".*a.*x{i}": i for i in range(MAX_EXPRESSIONS)})

    def match_many() -> None:
        for index in range(20_000):
            patterns.get(f"{'a.' * 90}{index}", None)

    with pytest.raises(InvalidInputError, match=r"alpha_pattern.*takes too long"):
        match_many()


@pytest.mark.parametrize(
    "expression",
    [
        "all-linear",
        r".*\.(q_proj|v_proj)$",
        r"(.*\.)?(q|v)_proj",
        r"^(?!.*patch_embed).*(?:linear|q_proj).*",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj|q_proj|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}"
        r"\.(?:self_attn|mlp)\.(?:(?:k_proj|v_proj|q_proj)))",
    ],
)
def test_expressions_that_tools_write_select_modules(expression: str) -> None:
    check_selector("target_modules", expression)


@pytest.mark.parametrize(
    "expression", ["(a|b|ab)*c", "(.*)*x", r"(.*)\1x", "(" * 200, ".*" * 6, "(a|aa)" * 10, "a" * 3000, "(.*\\.)*q"]
)
def test_an_expression_that_could_keep_peft_busy_for_years_is_refused(expression: str) -> None:
    with pytest.raises(InvalidInputError, match="target_modules"):
        check_selector("target_modules", expression)
