"""The audit log: every change has its line, refusals too, and nobody writes it full."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.registry.access.lab import Asking
from weft_registry.access.denials import MAX_PER_MINUTE, MAX_TOTAL_PER_MINUTE, DenialLog
from weft_registry.admin_api import Quota
from weft_registry.catalog import tables as t
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import ForbiddenError, NotFoundError, UnauthenticatedError
from weft_registry.principal import NOBODY, Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

NAME = AdapterName("team", "support")


def lines(registry: EmbeddedRegistry, **wanted: str) -> list[tuple[str, str, str, str]]:
    """Actor, action, namespace and subject, oldest first."""
    found = registry.audit_entries(limit=10_000, **wanted)
    return [(each.actor, each.action, each.namespace, each.subject) for each in reversed(found)]


def test_every_change_has_its_line(server: Asking, new_artifact: Callable[..., Path]) -> None:
    registry = server.registry
    client = server.client(server.token("ci", "read", "publish", "alias"))
    digests = [push(client, new_artifact(seed=seed), NAME, tags=[f"v{seed}"]).version.digest for seed in (1, 2)]
    client.set_alias(NAME, "production", "v1")
    client.set_alias(NAME, "production", "v2")
    client.yank(f"{NAME}:v1", "wrong split")
    registry.set_quota(Quota("team", max_versions=5))
    registry.revoke_token("ci")
    of = {digest: f"{NAME}@{digest}" for digest in digests}
    assert lines(registry) == [
        ("local", "token.create", "team", "ci"),
        ("ci", "publish", "team", of[digests[0]]),
        ("ci", "publish", "team", of[digests[1]]),
        ("ci", "alias.move", "team", f"{NAME}:production"),
        ("ci", "alias.move", "team", f"{NAME}:production"),
        ("ci", "yank", "team", of[digests[0]]),
        ("local", "quota.set", "team", "team"),
        ("local", "token.revoke", "team", "ci"),
    ]
    details = [json.loads(entry.detail_json) for entry in registry.audit_entries(action="yank")]
    assert details == [{"reason": "wrong split"}]


def test_what_did_not_happen_has_no_line(registry: EmbeddedRegistry) -> None:
    with pytest.raises(NotFoundError):
        registry.yank("team/nothing")
    assert lines(registry) == []


def test_nobody_changes_the_log(registry: EmbeddedRegistry) -> None:
    registry.create_token("ci", ["read"], ["team"])
    for statement in (t.audit.delete(), t.audit.update().values(actor="somebody else")):
        with pytest.raises(Exception, match="audit"), registry._catalog.write() as connection:
            connection.execute(statement)
    assert lines(registry) == [("local", "token.create", "team", "ci")]


def test_an_administrator_reads_what_happened_in_their_namespaces(registry: EmbeddedRegistry) -> None:
    registry.create_token("ours", ["read"], ["team"])
    registry.create_token("theirs", ["read"], ["acme"])
    registry.create_token("root", ["admin"], ["*"])
    lead = registry.acting_as(Principal("lead", frozenset({Scope.ADMIN}), frozenset({"team"})))
    assert [subject for *_, subject in lines(lead)] == ["ours"]
    with pytest.raises(ForbiddenError):
        lead.audit_entries("acme")
    assert [subject for *_, subject in lines(registry, actor="local")] == ["ours", "theirs", "root"]


def test_the_log_is_read_page_by_page_and_narrowed(server: Asking) -> None:
    registry = server.registry
    for index in range(25):
        registry.create_token(f"t{index:02}", ["read"], ["team"])
    admin = server.admin(server.token("root", "admin", namespaces=["*"]))
    expected = registry.audit_entries("team", limit=100)
    assert len(expected) == 25
    entries, more = registry.page_audit("team", "", "", None, 0, 10)
    rest, last = registry.page_audit("team", "", "", None, entries[-1].sequence, 15)
    assert ([*entries, *rest], more, last) == (expected, True, False)
    assert admin.audit_entries("team", limit=7) == expected[:7]
    assert admin.audit_entries("team", action="token.revoke") == []
    assert admin.audit_entries("team", since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert len(admin.audit_entries("team", since=datetime.now(UTC) - timedelta(hours=1))) == 25


def test_refusals_are_written_down(server: Asking, new_artifact: Callable[..., Path]) -> None:
    push(server.registry, new_artifact(), NAME)
    reader = server.client(server.token("reader", "read"))
    away = server.client(server.token("away", "read", namespaces=["acme"]))
    with pytest.raises(ForbiddenError):
        reader.yank(str(NAME))
    with pytest.raises(NotFoundError):
        away.resolve(str(NAME))
    with pytest.raises(UnauthenticatedError):
        server.client("weft_" + "0" * 16 + "_" + "0" * 64).resolve(str(NAME))
    found = server.registry.audit_entries(action="denied")
    assert [(each.actor, each.namespace, each.subject) for each in reversed(found)] == [
        ("reader", "team", ""),
        ("away", "team", str(NAME)),
        ("anonymous", "", "Resolve"),
    ]
    assert [json.loads(each.detail_json)["scope"] for each in reversed(found)] == ["publish", "read", "token"]
    assert all(json.loads(each.detail_json)["peer"] == "127.0.0.1" for each in found)


def test_whoever_is_refused_over_and_over_does_not_write_the_log_full(registry: EmbeddedRegistry) -> None:
    clock = 0.0
    log = DenialLog(registry._catalog, lambda: clock)
    somebody = Principal("somebody", frozenset(), frozenset({"team"}), peer="10.0.0.1")
    for _ in range(10 * MAX_PER_MINUTE):
        log.note(somebody, "read", "acme", "acme/x")
    # Others are still heard.
    log.note(NOBODY, "token", "*", "Resolve")
    log.flush()
    assert len(registry.audit_entries(actor="somebody")) == MAX_PER_MINUTE
    assert len(registry.audit_entries(actor="anonymous")) == 1
    clock = 60.0
    log.note(somebody, "read", "acme", "acme/x")
    log.close()
    newest = registry.audit_entries(actor="somebody")[0]
    assert json.loads(newest.detail_json)["left_out"] == 9 * MAX_PER_MINUTE


def test_many_who_are_refused_do_not_write_the_log_full_together(registry: EmbeddedRegistry) -> None:
    log = DenialLog(registry._catalog, lambda: 0.0)
    for index in range(2 * MAX_TOTAL_PER_MINUTE):
        log.note(Principal("x", frozenset(), frozenset(), peer=f"10.0.0.{index}"), "token", "*", "Resolve")
    log.close()
    with registry._catalog.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(t.audit)).scalar_one() == MAX_TOTAL_PER_MINUTE
