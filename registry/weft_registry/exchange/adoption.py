"""Files that came from elsewhere become an artifact, with a word of where they came from.

Files with a manifest of Weft's are an artifact already, and stay the version that they are: its digest covers whatever
could be added. For others a manifest is made, and says nothing that another import of the same source would not: the
same source is the same version, whoever imports it and when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry import artifact, peft_format
from weft_registry.adapterhub_format import import_adapterhub, is_saved_by_adapterhub
from weft_registry.base import BaseSpec, BaseStore
from weft_registry.errors import InvalidInputError, NotFoundError


@dataclass(frozen=True)
class Origin:
    """Where files came from."""

    source: str
    """As `weft import` is given it, without the revision."""
    provenance: Mapping[str, Any]
    """The manifest's `provenance`: `source`, and what names the very bytes."""
    created: str | None
    """UTC, "2026-01-31T12:00:00Z", as the source has it; None where it does not say, which is now."""


@dataclass(frozen=True)
class Choice:
    """What only a person knows about an adapter from elsewhere."""

    base: str | None = None
    """The name of the base that it is for; None asks for the one stored base of the name in its configuration."""
    pooling: str = "peft"
    """How a QA-LoRA file pools its inputs: see `peft_format.POOLINGS`."""


def adopt(files: Path, destination: Path, name: str, origin: Origin, bases: BaseStore, choice: Choice) -> Path:
    """The artifact made of the files in a directory, which is `destination`, or `files` itself if it is one already.

    Raises `NotFoundError` for a base that is not stored, `PreconditionError` for one that contradicts the manifest, and
    what `peft_format` and `adapterhub_format` raise.
    """
    if (files / artifact.MANIFEST).is_file():
        _check_base(files, origin, bases, choice)
        return files
    base = _base_of(files, origin, bases, choice)
    license, provenance, created = _license(files / artifact.CARD), origin.provenance, origin.created
    if is_saved_by_adapterhub(files):
        if choice.pooling != "peft":
            raise InvalidInputError(f"pooling: only PEFT's QA-LoRA pools; {origin.source} is one of AdapterHub's")
        return import_adapterhub(
            files, base, destination, name=name, license=license, provenance=provenance, created=created
        )
    return peft_format.import_directory(
        files,
        base,
        destination,
        name=name,
        pooling=choice.pooling,
        license=license,
        provenance=provenance,
        created=created,
    )


def _check_base(files: Path, origin: Origin, bases: BaseStore, choice: Choice) -> None:
    """The manifest has said both already: what contradicts it is refused, never ignored."""
    if choice.pooling != "peft":
        raise InvalidInputError(f"pooling: {origin.source} has an {artifact.MANIFEST}, which says how it pools")
    if choice.base is None:
        return
    ours = bases.get(choice.base).fingerprint
    artifact.read(files).base.check_is(ours, origin.source, f"base {choice.base}", "leave the base out")


def _base_of(files: Path, origin: Origin, bases: BaseStore, choice: Choice) -> BaseSpec:
    if choice.base is not None:
        return bases.get(choice.base)
    with (files / artifact.CONFIG).open("rb") as file:
        config = peft_format.parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))
    said = config.get("base_model_name_or_path") or config.get("model_name")
    names = [name for name in bases.names() if said and bases.get(name).fingerprint.id == said]
    if len(names) == 1:
        return bases.get(names[0])
    known = ", ".join(bases.names()) or "none"
    told = f"says that it was trained on {str(said)[:100]!r}" if said else "does not say which base it was trained on"
    many = f"; {', '.join(names)} are all of it" if names else ""
    raise NotFoundError(
        f"{origin.source} {told}{many}: say which stored base that is, with --base NAME (there are: {known}; "
        "`weft base add NAME SOURCE` adds one)",
        reason="BASE_NOT_FOUND",
        metadata={"base": str(said)[:100]},
    )


def _license(card: Path) -> str:
    """What the head of a model card says of the licence; empty where it says nothing that can be read."""
    if not card.is_file():
        return ""
    # Both come with huggingface_hub.
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        found = (metadata_load(card) or {}).get("license")
    except (ValueError, yaml.YAMLError):
        return ""
    return found if isinstance(found, str) and len(found) <= 100 and found.isprintable() else ""
