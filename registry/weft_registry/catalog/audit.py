"""The audit log: who did what, written in the transaction that did it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from weft_registry.catalog import records
from weft_registry.catalog import tables as t


def record(
    connection: Connection,
    actor: str,
    action: str,
    namespace: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Writes down that `actor` did `action` (one word, as "publish" or "alias.move") to `subject`, a reference or a
    name. `namespace` is where it happened; empty for the registry as a whole."""
    connection.execute(
        t.audit.insert().values(
            at_us=records.now_us(),
            actor=actor,
            action=action,
            namespace=namespace,
            subject=subject,
            detail=json.dumps(detail or {}, sort_keys=True),
        )
    )
