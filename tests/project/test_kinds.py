"""`weft kinds` says what the registry, the trainer, the kinds and the engines do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner

from benchmarks.subjects import random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds import KINDS
from weft_adapters.kinds.kind import Kind
from weft_client.cli.app import app
from weft_client.cli.kinds import FACTS, has_peft_form
from weft_registry.kinds import KIND_SCHEMAS
from weft_server.vllm_engine.kinds import SERVED
from weft_trainer.config.run import METHOD_OPTIONS
from weft_trainer.methods import METHODS

HOOKS = {
    "embedding": {"soft_prompt"},
    "linear": {"input_scale", "output_scale", "factors", "pack"},
    "attention": {"key_values"},
    "sublayer": {"sublayer_pack"},
}


def test_every_kind_and_every_method_is_there() -> None:
    assert FACTS.keys() == KIND_SCHEMAS.keys() == KINDS.keys()
    assert METHODS.keys() == METHOD_OPTIONS.keys()
    for kind, facts in FACTS.items():
        assert set(facts.methods) == {name for name, method in METHODS.items() if method.kind == kind}


@pytest.mark.parametrize("kind", FACTS)
def test_what_is_said_of_a_kind_is_what_it_does(kind: str) -> None:
    facts, computed = FACTS[kind], KINDS[kind]
    assert bool(facts.merges) == computed.mergeable != bool(facts.why_not)
    assert facts.vllm == (kind in SERVED)
    acts = {site for site, hooks in HOOKS.items() if any(overrides(computed, hook) for hook in hooks)}
    assert acts == {facts.site}


@pytest.mark.parametrize("kind", [kind for kind, facts in FACTS.items() if facts.merges])
def test_a_kind_merges_into_what_is_said(kind: str, tiny_base: Callable[..., AddedBase]) -> None:
    stored, says = tiny_base().stored, FACTS[kind].merges
    adapter = random_adapter(kind, stored.spec, 1, strength=0.1).bound(torch.float32, stored)
    exact: set[str] = set()
    dense: set[str] = set()
    for module in stored.spec.linears:
        merged = KINDS[kind].overlay(module, stored.int4(module), adapter)
        if merged is not None:
            (exact if isinstance(merged, Int4Weight) else dense).add(module.rpartition(".")[2])
    assert bool(exact) == ("exactly" in says)
    assert bool(dense) == ("dense" in says)
    # Where it is the one here and the other there, the modules of the other are named.
    assert not exact or dense == {leaf for leaf in dense | exact if leaf in says}


def overrides(kind: Kind[object], hook: str) -> bool:
    return getattr(type(kind), hook) is not getattr(Kind, hook)


def test_the_table_and_its_json_hold_the_same() -> None:
    shown = CliRunner().invoke(app, ["kinds"]).output
    rows = json.loads(CliRunner().invoke(app, ["kinds", "--json"]).output)
    assert [row["kind"] for row in rows] == list(FACTS)
    for row in rows:
        line = next(line for line in shown.splitlines() if line.startswith(row["kind"] + " "))
        assert all(method in line for method in row["trained_by"])
        assert row["merges"] in line
        assert ("vllm" in line) == ("vllm" in row["served_by"])
        assert ("import, export" in line) == row["peft_import"] == has_peft_form(row["kind"])
