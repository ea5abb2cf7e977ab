"""The published adapters that an artifact is made over (a fusion's parts): found by digest, or refused by name.

Asked for wherever such an artifact is published, served or trained, so that a part that is gone, yanked or of another
base is noticed before anything is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable

from weft_registry.api import Version
from weft_registry.errors import NotFoundError, PreconditionError
from weft_registry.kinds import KIND_SCHEMAS, kind_schema
from weft_registry.kinds.schema import CompositeSchema
from weft_registry.manifest import Manifest
from weft_registry.reference import Reference


def parts_of(manifest: Manifest) -> tuple[Reference, ...]:
    """The parts of an artifact, each by name and digest, in the kind's order; none for most kinds, nor for one that
    nobody knows here (whoever has to know it refuses it)."""
    schema = KIND_SCHEMAS.get(manifest.kind)
    return schema.parts(schema.parse(manifest.adapter)) if isinstance(schema, CompositeSchema) else ()


def resolve_parts(resolve: Callable[[str], Version], manifest: Manifest) -> list[Version]:
    """The versions of all parts, as `resolve` (a registry's) finds them, in the kind's order.

    Raises `NotFoundError` for a part that is not there, `PreconditionError` for one that is yanked or of another base,
    `InvalidInputError` for one of another kind or shape; the message names the part.
    """
    found: list[Version] = []
    for part in parts_of(manifest):
        try:
            version = resolve(str(part))
        except NotFoundError as error:
            raise NotFoundError(
                f"adapter.parts: {part}, a part of {manifest.name}, is not in this registry: push it first ({error})",
                reason="PART_NOT_FOUND",
                metadata={"part": str(part)},
            ) from error
        if version.yanked:
            why = f" ({version.yank_reason})" if version.yank_reason else ""
            raise PreconditionError(
                f"adapter.parts: {part}, a part of {manifest.name}, is yanked{why}: train it again over other parts",
                reason="YANKED",
                metadata={"part": str(part), "digest": version.digest},
            )
        check_part(manifest, part, version.manifest)
        found.append(version)
    return found


def check_part(manifest: Manifest, part: Reference, found: Manifest) -> None:
    """Raises unless `found` can be `part` of the artifact: `PreconditionError` for another base, `InvalidInputError`
    for another kind or shape."""
    have, want = found.base, manifest.base
    if have.weights_sha256 != want.weights_sha256:
        raise PreconditionError(
            f"adapter.parts: {part} was made for the base {have.id} with weights {have.weights_sha256}, "
            f"{manifest.name} for {want.id} with weights {want.weights_sha256}: all parts are for one base",
            reason="BASE_MISMATCH",
            metadata={"part": str(part), "part_base": have.weights_sha256, "base": want.weights_sha256},
        )
    schema = kind_schema(manifest.kind)
    assert isinstance(schema, CompositeSchema), manifest.kind
    schema.check_part(schema.parse(manifest.adapter), part, found.kind, found.adapter)
