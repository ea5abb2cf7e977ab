"""The table of kinds by engine says what the engines do."""

from __future__ import annotations

from pathlib import Path

from tests.project.engine_table import BEGIN, table, written
from weft_registry.kinds import KIND_SCHEMAS


def test_the_documented_table_is_fresh(root: Path) -> None:
    page = (root / "docs" / "server.md").read_text(encoding="utf-8")
    assert written(page) == page, "run `python -m tests.project.engine_table docs/server.md`"


def test_every_kind_has_a_row() -> None:
    assert all(f"\n| `{kind}` |" in table() for kind in KIND_SCHEMAS)
    assert table() in written(f"before {BEGIN} old <!-- end --> after")
