"""Whether a publish that comes at the end of hours of training can succeed, asked before they begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft_registry import digest as digests
from weft_registry.errors import AlreadyExistsError, InvalidInputError, NotFoundError, WeftError
from weft_registry.reference import LATEST, AdapterName, Reference, check_label

if TYPE_CHECKING:
    from weft_registry.api import RegistryApi


def check_publishing(
    registry: RegistryApi, adapter: AdapterName, tags: Sequence[str] = (), aliases: Sequence[str] = ()
) -> None:
    """Publishes nothing, and raises what publishing would: `UnavailableError` for a registry that is not there,
    whatever it answers to who may not publish under this name, `InvalidInputError` for a tag or alias that is none,
    `AlreadyExistsError` for one that is taken.

    Somebody else may still take a tag meanwhile; then the publish is refused, and the artifact is still there.
    """
    for tag in tags:
        check_label(tag, "tag")
    for alias in aliases:
        check_label(alias, "alias")
    both = set(tags) & {*aliases, LATEST}
    if both:
        raise InvalidInputError(f"{sorted(both)[0]!r}: a tag never moves and an alias does; no word can be both")
    # The first call of an upload.
    registry.find_missing([digests.of_bytes(b"")])
    _ask_to_publish(registry, adapter)
    try:
        versions = registry.list_versions(adapter, include_yanked=True)
    except NotFoundError:
        return
    for version in versions:
        for tag in tags:
            if tag in version.tags:
                raise AlreadyExistsError(
                    f"{adapter}:{tag} already names {version.digest}, for ever: choose another tag", reason="TAG_EXISTS"
                )
            if tag in version.aliases:
                raise AlreadyExistsError(f"{adapter}:{tag} is an alias, which moves: choose another tag")
        for alias in aliases:
            if alias in version.tags:
                raise AlreadyExistsError(f"{adapter}:{alias} is a tag, which never moves: choose another alias")


def check_parts(registry: RegistryApi, adapter: AdapterName, parts: Sequence[str]) -> None:
    """Raises what publishing an adapter over these parts (`adapter.parts` of a configuration) would: `NotFoundError`
    for one that is not in this registry, `PreconditionError` for one that is yanked."""
    # Imported here: only a fusion needs the kinds.
    from weft_registry.parts import resolve_part

    for text in parts:
        reference, how = _published_as(text)
        try:
            resolve_part(registry.resolve, reference, str(adapter), "choose another version or another adapter")
        except NotFoundError as error:
            raise NotFoundError(error.message + how, reason=error.reason, metadata=error.metadata) from error


def _published_as(part: str) -> tuple[str, str]:
    """(the reference that a part has once it is published, how it is)."""
    from weft_registry import artifact
    from weft_registry.parts import in_directory

    try:
        found = in_directory(part)
        if found is None:
            return part, ""
        name, path = found
        return str(Reference(name, digest=artifact.read(path).digest())), f"; `weft push {path} {name}` does"
    except WeftError as error:
        error.begin(f"adapter.parts: {part}: ")
        raise


def _ask_to_publish(registry: RegistryApi, adapter: AdapterName) -> None:
    """Publishes an empty manifest: who may publish is told that it is none, everybody else why they may not."""
    try:
        registry.publish(adapter, b"{}")
    except InvalidInputError as error:
        if "manifest" not in error.message:
            raise
