"""Moves aliases: what happens inside one write transaction. Every move is compare-and-swap where an etag is given, is
kept in the history, and is written in the audit log.

Who may move an alias at all is asked here as well (`weft_registry.catalog.protection`); whether the caller may move
aliases in the namespace is asked by `weft_registry.embedded_aliases`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy import Connection

from weft_registry.api import Alias, Version
from weft_registry.catalog import alias_history, audit, protection, records
from weft_registry.catalog import tables as t
from weft_registry.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.names import nearest
from weft_registry.principal import Principal
from weft_registry.reference import LATEST, AdapterName, Reference

ABSENT = "none"
"""The etag of an alias that does not exist."""


def point(
    connection: Connection,
    principal: Principal,
    adapter: AdapterName,
    alias: str,
    target: Reference,
    expected_etag: str = "",
) -> Alias:
    """Points an alias at what `target` names. Errors as for `SetAlias` in registry.proto."""
    adapter_id = records.adapter_id(connection, adapter)
    protection.check_may_move(connection, principal, adapter, (alias,))
    if find_tag(connection, adapter_id, alias) is not None:
        raise AlreadyExistsError(f"{adapter}:{alias} is a tag, which never moves: choose another alias")
    _check_etag(adapter, alias, records.alias(connection, adapter_id, alias), expected_etag)
    version = records.resolve(connection, target)
    if version.yanked:
        raise PreconditionError(
            f"{adapter}@{version.digest} is yanked: an alias cannot point at it",
            reason="YANKED",
            metadata={"digest": version.digest},
        )
    return _moved(connection, principal, adapter, adapter_id, alias, version.digest, "alias.move")


def remove(
    connection: Connection, principal: Principal, adapter: AdapterName, alias: str, expected_etag: str = ""
) -> str:
    """Removes an alias, and says the digest that it named. Errors as for `DeleteAlias` in registry.proto."""
    if alias == LATEST:
        raise PreconditionError(
            f"{LATEST!r} follows every publish and cannot be removed: it goes with the last version that is not yanked",
            reason="LATEST_STAYS",
        )
    adapter_id = records.adapter_id(connection, adapter)
    current = _existing(connection, adapter, adapter_id, alias)
    protection.check_may_move(connection, principal, adapter, (alias,))
    _check_etag(adapter, alias, current, expected_etag)
    move_alias(connection, adapter_id, alias, None, principal.name)
    audit.record(
        connection,
        principal.name,
        "alias.remove",
        adapter.namespace,
        f"{adapter}:{alias}",
        {"digest": "", "previous": current.digest},
    )
    return current.digest


def roll_back(
    connection: Connection,
    principal: Principal,
    adapter: AdapterName,
    alias: str,
    expected_etag: str = "",
    steps: int = 1,
) -> Alias:
    """Points an alias at what it named before its last `steps` moves. Errors as for `RollbackAlias` in registry.proto;
    an alias never goes to a version that is yanked or deleted, and the error says which it is."""
    if not 1 <= steps <= alias_history.MAX_STEPS:
        raise InvalidInputError(f"steps: {steps}; from 1 to {alias_history.MAX_STEPS}")
    adapter_id = records.adapter_id(connection, adapter)
    current = _existing(connection, adapter, adapter_id, alias)
    protection.check_may_move(connection, principal, adapter, (alias,))
    _check_etag(adapter, alias, current, expected_etag)
    before = alias_history.before(connection, adapter_id, alias, steps)
    ago = "its last move" if steps == 1 else f"its last {steps} moves"

    def refused(problem: str, reason: str) -> PreconditionError:
        return PreconditionError(
            f"{adapter}:{alias} stays at {current.digest}: before {ago} {problem}; `weft alias history {adapter} "
            f"{alias}` shows where it has been",
            reason=reason,
            metadata={"alias": alias, "digest": before or "", "etag": current.etag},
        )

    if not before:
        raise refused("it named nothing", "NO_SUCH_MOVE")
    if before == current.digest:
        raise refused("it named the same version", "ALREADY_THERE")
    version_id = records.find_digest(connection, adapter_id, before)
    if version_id is None:
        raise refused(f"it named {before}, which was deleted", "VERSION_DELETED")
    if records.versions(connection, [version_id])[0].yanked:
        raise refused(f"it named {before}, which is yanked", "YANKED")
    return _moved(connection, principal, adapter, adapter_id, alias, before, "alias.rollback")


def check_unnamed(adapter: AdapterName, version: Version, verb: str) -> None:
    """Raises `PreconditionError` naming every alias that points at a version; `latest`, which moves by itself, does
    not count. `verb` is what cannot be done meanwhile ("yanked")."""
    pointing = [alias for alias in version.aliases if alias != LATEST]
    if pointing:
        named = ", ".join(repr(alias) for alias in pointing)
        many = "the aliases" if len(pointing) > 1 else "the alias"
        raise PreconditionError(
            f"{adapter}@{version.digest} cannot be {verb}: {many} {named} {'point' if len(pointing) > 1 else 'points'} "
            "at it: move to another version first (`weft alias set`), or remove (`weft alias rm`)",
            reason="ALIAS_POINTS_HERE",
            metadata={"aliases": ",".join(pointing), "digest": version.digest},
        )


def retreat_latest(connection: Connection, adapter_id: int, leaving: int, actor: str) -> None:
    """Moves `latest` from the version `leaving` to the newest other one that is not yanked, or removes it."""
    v = t.versions.c
    newest = connection.execute(
        sa.select(v.id)
        .where(v.adapter_id == adapter_id, v.yanked.is_(False), v.id != leaving)
        .order_by(v.id.desc())
        .limit(1)
    ).scalar_one_or_none()
    move_alias(connection, adapter_id, LATEST, newest, actor)


def find_tag(connection: Connection, adapter_id: int, tag: str) -> int | None:
    """The version id that a tag names."""
    return connection.execute(
        sa.select(t.tags.c.version_id).where(t.tags.c.adapter_id == adapter_id, t.tags.c.tag == tag)
    ).scalar_one_or_none()


def move_alias(connection: Connection, adapter_id: int, alias: str, version_id: int | None, actor: str) -> None:
    """Points an alias at a version, or removes it (None), and writes down who moved it. No move to where it is."""
    c = t.aliases.c
    here = sa.and_(c.adapter_id == adapter_id, c.alias == alias)
    previous = connection.execute(sa.select(c.version_id).where(here)).scalar_one_or_none()
    if previous == version_id:
        return
    etag, now = uuid.uuid4().hex, records.now_us()
    key = {"adapter_id": adapter_id, "alias": alias}
    place = {"version_id": version_id, "previous_version_id": previous, "etag": etag, "moved_at_us": now}
    if version_id is None:
        connection.execute(t.aliases.delete().where(here))
    elif previous is None:
        connection.execute(t.aliases.insert().values(**key, **place))
    else:
        connection.execute(t.aliases.update().where(here).values(**place))
    digests_of = records.digests_of(connection, (version_id, previous))
    connection.execute(
        t.alias_moves.insert().values(
            **key,
            digest=digests_of.get(version_id, ""),
            previous_digest=digests_of.get(previous, ""),
            etag=etag,
            moved_at_us=now,
            actor=actor,
        )
    )


def _existing(connection: Connection, adapter: AdapterName, adapter_id: int, alias: str) -> Alias:
    current = records.alias(connection, adapter_id, alias)
    if current is not None:
        return current
    c = t.aliases.c
    known: Sequence[str] = connection.execute(sa.select(c.alias).where(c.adapter_id == adapter_id)).scalars().all()
    near = nearest(alias, known)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    if find_tag(connection, adapter_id, alias) is not None:
        hint = "; it is a tag, which never moves"
    raise NotFoundError(
        f"{adapter} has no alias {alias!r}{hint}",
        reason="ALIAS_NOT_FOUND",
        metadata={"adapter": str(adapter), "alias": alias, "nearest": ",".join(near)},
    )


def _check_etag(adapter: AdapterName, alias: str, current: Alias | None, expected: str) -> None:
    etag = current.etag if current else ABSENT
    if expected and expected != etag:
        at = f"at {current.digest} (etag {etag})" if current else "not there"
        raise ConflictError(
            f"{adapter}:{alias} is {at}, not at etag {expected[:40]}: somebody moved it; read it again",
            reason="ALIAS_MOVED",
            metadata={"alias": alias, "etag": etag, "digest": current.digest if current else ""},
        )


def _moved(
    connection: Connection,
    principal: Principal,
    adapter: AdapterName,
    adapter_id: int,
    alias: str,
    digest: str,
    action: str,
) -> Alias:
    before = records.alias(connection, adapter_id, alias)
    move_alias(connection, adapter_id, alias, records.find_digest(connection, adapter_id, digest), principal.name)
    moved = records.alias(connection, adapter_id, alias)
    assert moved is not None, "an alias that was just pointed somewhere"
    if before is None or before.etag != moved.etag:
        previous = before.digest if before else ""
        audit.record(
            connection,
            principal.name,
            action,
            adapter.namespace,
            f"{adapter}:{alias}",
            {"digest": moved.digest, "previous": previous},
        )
    return replace(moved, protected=protection.protection_of(connection, adapter, alias) is not None)
