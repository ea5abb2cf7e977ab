"""`weft kinds`: what there is to train, to serve and to merge. Needs neither torch nor a server.

What is said here is checked against the trainer, the kinds and both engines by `tests/project/test_kinds.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from weft_client.cli.options import json_option
from weft_client.cli.output import Column, echo_json, echo_table


@dataclass(frozen=True)
class KindFacts:
    """One adapter kind, for people."""

    site: str
    """Where it acts: "embedding", "linear", "attention" or "sublayer"."""
    methods: tuple[str, ...]
    """`method:` of the trainings that make it."""
    merges: str
    """How; empty where it cannot be merged."""
    why_not: str = ""
    """Why it cannot be."""
    vllm: bool = False
    """Whether the vLLM engine serves it; the torch engine serves all."""


_NO_WEIGHT = "it changes no weight"
_NOT_LINEAR = "it is not linear"

FACTS: Mapping[str, KindFacts] = {
    "lora": KindFacts("linear", ("lora", "qlora", "full", "partial", "galore"), "into a dense overlay", vllm=True),
    "dora": KindFacts("linear", ("dora",), "into a dense overlay"),
    "qalora": KindFacts("linear", ("qalora",), "exactly, into the int4 minima", vllm=True),
    "ia3": KindFacts(
        "linear", ("ia3",), "exactly, into the int4 scales; an input scale of o_proj into a dense overlay"
    ),
    "prefix": KindFacts("attention", ("prefix", "p_tuning_v2"), "", _NO_WEIGHT, vllm=True),
    "prompt": KindFacts("embedding", ("prompt_tuning", "p_tuning"), "", _NO_WEIGHT, vllm=True),
    "bottleneck": KindFacts("sublayer", ("houlsby", "pfeiffer", "parallel"), "", _NOT_LINEAR),
    "fusion": KindFacts("sublayer", ("fusion",), "", _NOT_LINEAR),
}


@click.command()
@json_option
def kinds(as_json: bool) -> None:
    """List the adapter kinds: where each acts, what trains, serves and merges it.

    \b
    Example:
      weft kinds
    """
    if as_json:
        echo_json([_json(kind, facts) for kind, facts in FACTS.items()])
        return
    columns = (
        Column("KIND"),
        Column("SITE"),
        Column("TRAINED BY", folds=True),
        Column("SERVED BY"),
        Column("MERGES", folds=True),
        Column("PEFT"),
    )
    echo_table(columns, [_row(kind, facts) for kind, facts in FACTS.items()], "")


def has_peft_form(kind: str) -> bool:
    """Whether adapters of the kind are imported from PEFT's directories and exported to them."""
    # Imported here: the help of all commands comes without the schemas.
    from weft_registry.kinds import KIND_SCHEMAS
    from weft_registry.kinds.schema import PeftSchema

    return isinstance(KIND_SCHEMAS[kind], PeftSchema)


def _row(kind: str, facts: KindFacts) -> list[str]:
    return [
        kind,
        facts.site,
        ", ".join(facts.methods),
        "torch, vllm" if facts.vllm else "torch",
        facts.merges or f"no: {facts.why_not}",
        "import, export" if has_peft_form(kind) else "no",
    ]


def _json(kind: str, facts: KindFacts) -> dict[str, Any]:
    return {
        "kind": kind,
        "site": facts.site,
        "trained_by": list(facts.methods),
        "served_by": ["torch", "vllm"] if facts.vllm else ["torch"],
        "mergeable": bool(facts.merges),
        "merges": facts.merges or f"no: {facts.why_not}",
        "peft_import": has_peft_form(kind),
        "peft_export": has_peft_form(kind),
    }
