"""The Hub's listings: adapters by search, author and tags, and an adapter's history. Yanked versions are in none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from weft_registry.api import Version
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.hub import documents
from weft_registry.hub.revisions import Found
from weft_registry.reference import AdapterName, check_name
from weft_registry.workspaces.workspaces import Workspace

DEFAULT_PAGE = 100
MAX_PAGE = 1000
_READ = 100
_KNOWN = {"search", "author", "filter", "limit", "cursor"}
_WITHOUT_EFFECT = {"full", "cardData", "config", "expand", "fetch_config"}
"""They ask for more than the least there is; here everything there is comes in any case."""

Query = Mapping[str, Sequence[str]]
Document = tuple[list[dict[str, Any]], str]
"""Entries, and the query of the next page; empty after the last one."""


def models(registry: EmbeddedRegistry, query: Query) -> Document:
    """Adapters in name order. Raises `InvalidInputError` for what cannot be asked here, rather than ignore it."""
    asked = {key.removesuffix("[]"): values for key, values in query.items()}
    for key in asked:
        if key not in _KNOWN | _WITHOUT_EFFECT:
            raise InvalidInputError(
                f"{key[:50]}: adapters can be listed by {', '.join(sorted(_KNOWN))}; they come in the order of names"
            )
    limit = _whole(_one(asked, "limit"), DEFAULT_PAGE, "limit", least=1)
    limit = min(limit, MAX_PAGE)
    author, search = _one(asked, "author"), _one(asked, "search").lower()
    tags = {tag.strip() for value in asked.get("filter", ()) for tag in value.split(",")}
    if author:
        try:
            check_name(author, "author")
        except InvalidInputError:
            return [], ""  # Not a namespace that could exist.
    after = _one(asked, "cursor")
    if after:
        AdapterName.parse(after)
    found: list[dict[str, Any]] = []
    while True:
        page = registry.page_adapters(author, after, _READ)
        for summary in page:
            version = summary.latest
            if version is not None and search in str(summary.adapter) and tags <= {*_tags(version, tags)}:
                if len(found) == limit:
                    more = {**asked, "cursor": [after]}
                    return found, urlencode(more, doseq=True)
                found.append(documents.model_info(version))
            after = str(summary.adapter)
        if len(page) < _READ:
            return found, ""


def commits(registry: EmbeddedRegistry, version: Found, query: Query) -> Document:
    """The history up to a version, newest first. A workspace has only itself, and so has a yanked version, which is
    asked for by commit id."""
    before = _whole(_one(query, "cursor"), 0, "cursor")
    if isinstance(version, Workspace) or version.yanked:
        return [documents.commit(version)], ""
    found: list[dict[str, Any]] = []
    begun = before > 0
    while True:
        rows, more = registry.page_versions(version.adapter, False, before, _READ)
        for row in rows:
            begun = begun or row.version.digest == version.digest
            if begun:
                found.append(documents.commit(row.version))
            before = row.id
        if not more or not rows:
            return found, ""
        if found:
            return found, urlencode({"cursor": before})


def refs(registry: EmbeddedRegistry, adapter: AdapterName) -> dict[str, Any]:
    """Where every tag and alias points. Raises `NotFoundError` for an adapter that is not there."""
    versions: list[Version] = []
    before, more = 0, True
    while more:
        rows, more = registry.page_versions(adapter, False, before, _READ)
        versions += [row.version for row in rows if row.version.tags or row.version.aliases]
        before = rows[-1].id if rows else before
    return documents.refs(versions, registry.workspaces.heads(adapter))


def tree(version: Found, path: str) -> list[dict[str, Any]]:
    """The files under `path`. Raises `NotFoundError`: there is no folder but the root."""
    if path:
        raise NotFoundError(
            f"{version.adapter}, commit {documents.commit_of(version)}, has no folder {path[:150]!r}: an artifact is "
            "one flat directory",
            reason="FILE_NOT_FOUND",
        )
    return documents.tree(version)


def _tags(version: Version, wanted: set[str]) -> list[str]:
    # Parsing a manifest takes milliseconds: only where somebody asks for tags.
    return documents.tags_of(version) if wanted else []


def _one(query: Query, key: str) -> str:
    values = query.get(key, ())
    if len(values) > 1:
        raise InvalidInputError(f"{key}: given {len(values)} times")
    return values[0] if values else ""


def _whole(text: str, default: int, what: str, least: int = 0) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        raise InvalidInputError(f"{what}: {text[:40]!r} is not a whole number from {least} on")
    return int(text)
