"""The published adapters that an artifact is made over (a fusion's parts): found by digest, or refused by name.

Asked for wherever such an artifact is published, served or trained, so that a part that is gone, yanked or of another
base is noticed before anything is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weft_registry.api import Version
from weft_registry.errors import NotFoundError, PreconditionError
from weft_registry.kinds import KIND_SCHEMAS, kind_schema
from weft_registry.kinds.schema import CompositeSchema
from weft_registry.manifest import Manifest
from weft_registry.named import directory_at
from weft_registry.reference import AdapterName, Reference


def parts_of(manifest: Manifest) -> tuple[Reference, ...]:
    """The parts of an artifact, each by name and digest, in the kind's order; none for most kinds, nor for one that
    nobody knows here (whoever has to know it refuses it)."""
    schema = KIND_SCHEMAS.get(manifest.kind)
    return schema.parts(schema.parse(manifest.adapter)) if isinstance(schema, CompositeSchema) else ()


def resolve_parts(resolve: Callable[[str], Version], manifest: Manifest) -> list[Version]:
    """The versions of all parts, as `resolve` (a registry's) finds them, in the kind's order.

    Raises what `resolve_part` raises, `PreconditionError` for a part of another base, `InvalidInputError` for one of
    another kind or shape; the message names the part.
    """
    found: list[Version] = []
    for part in parts_of(manifest):
        version = resolve_part(resolve, str(part), manifest.name)
        check_part(manifest, part, version.manifest)
        found.append(version)
    return found


def resolve_part(
    resolve: Callable[[str], Version], part: str, whole: str, instead: str = "train it again over other parts"
) -> Version:
    """The version of a part of the adapter `whole`. Raises `NotFoundError` if it is not there, `PreconditionError` if
    it is yanked, which says what to do `instead`."""
    try:
        version = resolve(part)
    except NotFoundError as error:
        if error.reason == "YANKED":
            why, digest = error.metadata.get("yank_reason", ""), error.metadata.get("digest", "")
            raise _yanked(part, whole, why, digest, instead) from error
        raise NotFoundError(
            f"adapter.parts: {part}, a part of {whole}, is not in this registry: push it first ({error})",
            reason="PART_NOT_FOUND",
            metadata={"part": part},
        ) from error
    if version.yanked:
        raise _yanked(part, whole, version.yank_reason, version.digest, instead)
    return version


def check_part(manifest: Manifest, part: Reference, found: Manifest) -> None:
    """Raises unless `found` can be `part` of the artifact: `PreconditionError` for another base, `InvalidInputError`
    for another kind or shape."""
    whose = f"that of {manifest.name}"
    found.base.check_is(manifest.base, f"adapter.parts: {part}", whose, "all parts are for one base")
    schema = kind_schema(manifest.kind)
    assert isinstance(schema, CompositeSchema), manifest.kind
    schema.check_part(schema.parse(manifest.adapter), part, found.kind, found.adapter)


def in_directory(text: str) -> tuple[AdapterName, Path] | None:
    """(name, directory) of a part that is written "NAMESPACE/NAME=DIRECTORY": an artifact, and the name that it is, or
    will be, published under. None for a reference. Raises `InvalidInputError` for no name, `NotFoundError` where no
    directory is."""
    name, equals, path = text.partition("=")
    if not equals:
        return None
    return AdapterName.parse(name), directory_at(path)


def _yanked(part: str, whole: str, reason: str, digest: str, instead: str) -> PreconditionError:
    why = f" ({reason})" if reason else ""
    return PreconditionError(
        f"adapter.parts: {part}, a part of {whole}, is yanked{why}: {instead}",
        reason="YANKED",
        metadata={"part": part, "digest": digest},
    )
