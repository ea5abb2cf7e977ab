"""Where a version comes from and what came of it, as `weft show` says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft_client.cli.output import short, timestamp
from weft_registry.errors import NotFoundError
from weft_registry.reference import LATEST

if TYPE_CHECKING:
    from weft_registry.api import RegistryApi, Signature, Version

TOLD = ("parent_version", "datasets", "config", "config_sha256")
"""Keys of a manifest's provenance that are told here, in words."""
_HISTORY = 1000


@dataclass(frozen=True)
class Parent:
    """The version that another one was trained on from."""

    digest: str
    references: tuple[str, ...]
    """What it is called in this registry; none if it is not there."""
    deleted: bool
    """It was there, under the same name."""


@dataclass(frozen=True)
class Lineage:
    """The family of one version, and who vouches for it."""

    parent: Parent | None
    children: tuple[Version, ...]
    signatures: tuple[Signature, ...]


def lineage_of(registry: RegistryApi, version: Version) -> Lineage:
    """Asks the registry. Raises what `RegistryApi` raises."""
    from weft_registry.api import VersionQuery

    children = registry.search_versions(
        VersionQuery(parent_digest=version.digest, all_versions=True, order_by="published")
    )
    signatures = registry.list_signatures(f"{version.adapter}@{version.digest}")
    return Lineage(_parent(registry, version), tuple(children), tuple(signatures))


def lineage_json(lineage: Lineage) -> dict[str, Any]:
    """The keys that `weft show --json` has of it."""
    parent = lineage.parent
    return {
        "parent": None
        if parent is None
        else {"digest": parent.digest, "references": list(parent.references), "deleted": parent.deleted},
        "children": [f"{child.adapter}@{child.digest}" for child in lineage.children],
        "signatures": [
            {"key": each.key_digest, "added_at": timestamp(each.added_at), "added_by": each.added_by}
            for each in lineage.signatures
        ],
    }


def lineage_fields(lineage: Lineage, provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines that `weft show` has of it."""
    parent = lineage.parent
    if parent is not None:
        if parent.references:
            yield "parent", ", ".join(parent.references)
        else:
            yield "parent", f"{parent.digest} ({'deleted' if parent.deleted else 'not in this registry'})"
    for child in lineage.children:
        labels = ", ".join((*child.tags, *child.aliases))
        yield "child", f"{child.adapter}@{child.digest}" + (f" ({labels})" if labels else "")
    for signature in lineage.signatures:
        by = f" by {signature.added_by}" if signature.added_by else ""
        yield "signed", f"with key {short(signature.key_digest)}, {timestamp(signature.added_at)}{by}"
    datasets = provenance.get("datasets")
    for dataset in datasets if isinstance(datasets, list) else []:
        if isinstance(dataset, dict):
            yield "dataset", _dataset(dataset)
    if isinstance(digest := provenance.get("config_sha256"), str):
        yield "training config", digest
    if isinstance(config := provenance.get("config"), dict):
        for key, value in _settings("", config):
            yield f"config.{key}", value


def _parent(registry: RegistryApi, version: Version) -> Parent | None:
    digest = version.parent_digest
    if not digest:
        return None
    try:
        # Also where it was yanked, which no search finds.
        registry.resolve(f"{version.adapter}@{digest}")
        return Parent(digest, (f"{version.adapter}@{digest}",), False)
    except NotFoundError:
        pass
    from weft_registry.api import VersionQuery

    found = registry.search_versions(VersionQuery(label=digest, all_versions=True))
    if found:
        return Parent(digest, tuple(f"{each.adapter}@{digest}" for each in found), False)
    moves = registry.list_alias_moves(version.adapter, LATEST, _HISTORY)
    return Parent(digest, (), any(move.digest == digest for move in moves))


def _dataset(dataset: Mapping[str, Any]) -> str:
    name = str(dataset.get("uri") or dataset.get("label") or "-")
    split = f" ({dataset['split']})" if dataset.get("split") else ""
    count = f", {dataset['examples']} examples" if "examples" in dataset else ""
    return f"{name}{split}{count}  {dataset.get('sha256', '-')}"


def _settings(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """A training configuration's settings that say something, with dots between their keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _settings(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _settings(f"{prefix}[{index}]", inner)
    elif value is not None:
        yield prefix, str(value)
