"""Hostile configurations: adapter_config.json that runs code, computes something else, or never ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.registry.hostile.case import Cases, edit_config, edit_manifest, rewrite_config
from tests.registry.lab import BASE, PARAMS
from weft_registry import artifact, peft_format

CASES = Cases()
BOMB = "(a|b|ab)*c"
"""Matched against a name of fifty a and b this takes years."""

EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "remote_code": (
        lambda c: c.update(auto_mapping={"base_model_class": "X", "parent_library": "evil.models.x"}),
        "auto_mapping",
    ),
    "remote_code_that_looks_like_transformers": (
        lambda c: c.update(auto_mapping={"base_model_class": "X", "parent_library": "transformers.models.x\nos"}),
        "auto_mapping",
    ),
    "remote_code_in_a_list": (lambda c: c.update(auto_mapping=["evil"]), "auto_mapping"),
    "an_auto_map": (lambda c: c.update(auto_map={"AutoModel": "modeling_x.X"}), "unknown key 'auto_map'"),
    "trust_remote_code": (lambda c: c.update(trust_remote_code=True), "unknown key 'trust_remote_code'"),
    "a_megatron_module": (lambda c: c.update(megatron_config={"x": 1}), "Megatron"),
    "a_rank_of_2_60": (lambda c: c.update(r=1 << 60), "gives it rank 1152921504606846976"),
    "a_rank_of_nought": (lambda c: c.update(r=0), "positive whole number"),
    "a_rank_that_is_text": (lambda c: c.update(r="4" * 1000), "positive whole number"),
    "a_rank_of_other_tensors": (lambda c: c.update(r=8), "gives it rank 8"),
    "a_rank_that_is_a_list": (lambda c: c.update(r=[4]), "positive whole number"),
    "another_alpha": (lambda c: c.update(lora_alpha=10**6), "scaling"),
    "an_alpha_of_1e308_in_the_configuration": (lambda c: c.update(lora_alpha=1e308), "lora_alpha"),
    "an_alpha_beyond_decimals": (lambda c: c.update(lora_alpha=10**400), "lora_alpha"),
    "a_target_that_runs_for_years": (lambda c: c.update(target_modules=BOMB), "target_modules"),
    "a_nested_repeat_as_a_target": (lambda c: c.update(target_modules="(.*)*x"), "target_modules"),
    "a_back_reference_as_a_target": (lambda c: c.update(target_modules=r"(.*)\1x"), "target_modules"),
    "a_target_that_is_no_expression": (lambda c: c.update(target_modules="(" * 3000), "target_modules"),
    "ten_repeats_as_a_target": (lambda c: c.update(target_modules=".*" * 10 + "x"), "target_modules"),
    "a_target_of_half_a_megabyte": (lambda c: c.update(target_modules="a" * (1 << 19)), "target_modules"),
    "a_target_of_other_modules": (lambda c: c.update(target_modules=["x_proj"]), "target_modules does not name"),
    "an_exclusion_that_runs_for_years": (lambda c: c.update(exclude_modules=BOMB), "exclude_modules"),
    "a_layers_pattern_that_runs_for_years": (lambda c: c.update(layers_pattern=BOMB), "layers_pattern"),
    "layers_patterns_that_run_for_years": (lambda c: c.update(layers_pattern=["x", BOMB]), "layers_pattern"),
    "a_rank_pattern_that_runs_for_years": (lambda c: c["rank_pattern"].update({BOMB: 4}), "rank_pattern"),
    "a_rank_pattern_of_nested_repeats": (lambda c: c["rank_pattern"].update({"(a+)+$": 4}), "rank_pattern"),
    "a_rank_pattern_that_looks_around": (lambda c: c["rank_pattern"].update({"(?=(a+))\\1": 4}), "rank_pattern"),
    "an_alpha_pattern_of_a_million_repeats": (
        lambda c: c["alpha_pattern"].update({"(a{1000}){1000}": 4}),
        "alpha_pattern",
    ),
    "a_rank_pattern_of_ambiguous_choices": (
        lambda c: c["rank_pattern"].update({"(a|aa)" * 40: 4}),
        "ways through its choices",
    ),
    "ten_thousand_patterns": (
        lambda c: c.update(rank_pattern={f"m{i}": 4 for i in range(10_000)}),
        "at most 8192",
    ),
    "forty_expressions": (
        lambda c: c.update(rank_pattern={f"m{i}.*": 4 for i in range(40)}),
        "regular expressions",
    ),
    "a_pattern_that_is_a_list": (lambda c: c.update(alpha_pattern=[["q_proj", 4]]), "expected an object"),
    "layers_to_copy": (lambda c: c.update(layer_replication=[[0, 1 << 30]]), "layer_replication"),
    "modules_to_save": (lambda c: c.update(modules_to_save=["lm_head"]), "modules_to_save"),
    "biases": (lambda c: c.update(bias="all"), "bias"),
    "an_initialisation_of_the_base": (lambda c: c.update(init_lora_weights="pissa_niter_4"), "changed the base"),
    "dora_that_the_manifest_does_not_know": (lambda c: c.update(use_dora=True), "magnitude"),
    "a_task_that_is_no_text": (lambda c: c.update(task_type="SEQ_CLS"), "task_type"),
    "a_kind_that_peft_may_have_one_day": (lambda c: c.update(peft_type="X" * 1000), "is not supported"),
    "a_peft_type_that_is_an_object": (lambda c: c.update(peft_type={"a": 1}), "is not supported"),
    "a_key_with_a_lone_surrogate": (lambda c: c.update({"\ud800": 1}), "unknown key"),
}
for _name, (_change, _says) in EDITS.items():
    CASES.add(_name, lambda d, change=_change: edit_config(d, change), _says)  # type: ignore[misc]


@CASES("a prefix has one tensor")
def a_configuration_for_another_kind(directory: Path) -> None:
    config = peft_format.to_peft("prefix", PARAMS["prefix"], BASE)
    rewrite_config(directory, peft_format.config_bytes(config))


@CASES("has one tensor", kind="lora")
def a_prompt_around_the_tensors_of_lora(directory: Path) -> None:
    config = peft_format.to_peft("prompt", PARAMS["prompt"], BASE)
    rewrite_config(directory, peft_format.config_bytes(config))


@CASES("asks for", kind="prompt")
def a_prompt_of_a_million_tokens(directory: Path) -> None:
    edit_config(directory, lambda c: c.update(num_virtual_tokens=10**6))


@CASES("disagree", kind="ia3")
def a_vector_on_the_other_side(directory: Path) -> None:
    edit_config(directory, lambda c: c.update(feedforward_modules=["q_proj"]))


@CASES("feedforward_modules", kind="ia3")
def a_feedforward_expression_that_runs_for_years(directory: Path) -> None:
    edit_config(directory, lambda c: c.update(feedforward_modules=BOMB))


@CASES("at most 1048576")
def a_configuration_of_ten_megabytes(directory: Path) -> None:
    edit_config(directory, lambda c: c.update(base_model_name_or_path="x" * (10 << 20)))


@CASES("a key appears twice")
def a_configuration_with_two_ranks(directory: Path) -> None:
    config = (directory / artifact.CONFIG).read_bytes()
    rewrite_config(directory, b'{"r":8,' + config.lstrip()[1:])


@CASES("is not JSON")
def an_alpha_that_is_nan_in_the_configuration(directory: Path) -> None:
    rewrite_config(directory, b'{"peft_type":"LORA","r":4,"lora_alpha":NaN}')


@CASES("not a finite number")
def an_alpha_that_overflows(directory: Path) -> None:
    rewrite_config(directory, b'{"peft_type":"LORA","r":4,"lora_alpha":1e999}')


@CASES("not UTF-8 JSON")
def a_configuration_of_brackets(directory: Path) -> None:
    rewrite_config(directory, b'{"a":' + b"[" * 500_000)


@CASES("expected an object")
def a_configuration_that_is_a_string(directory: Path) -> None:
    rewrite_config(directory, json.dumps("LORA").encode())


@CASES("is missing", wire="is missing")
def no_configuration(directory: Path) -> None:
    (directory / artifact.CONFIG).unlink()
    edit_manifest(directory, lambda m: m.update(files=[f for f in m["files"] if f["path"] != artifact.CONFIG]))
