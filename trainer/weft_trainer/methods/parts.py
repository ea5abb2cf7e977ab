"""The adapters that another is trained over, a fusion's parts or what lies below a bottleneck adapter: from a registry,
or from artifact directories that will be pushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from weft_adapters.binding import bind
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact, validation
from weft_registry.api import RegistryApi, Version
from weft_registry.base import BaseSpec
from weft_registry.errors import (
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnauthenticatedError,
    UnavailableError,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.kinds.bottleneck import BottleneckSchema
from weft_registry.manifest import Manifest
from weft_registry.parts import in_directory
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import open_registry, pull
from weft_trainer.config.adapter import BottleneckOptions, FusionOptions

STACKED_ON = "stacked_on"
"""The key of a manifest's provenance that names what lay below an adapter when it was trained, the lowest first."""
_NO_ANSWER = (NotFoundError, UnavailableError, DeadlineError, UnauthenticatedError, ForbiddenError)


@dataclass(frozen=True)
class Purpose:
    """What parts are looked for for, in the words of messages."""

    where: str
    """Who names them."""
    kind: str
    """Why an adapter of another kind is none of them."""
    yanked: str
    """What to do about one that is yanked."""
    missing: str = ""
    """What to do about one that is not there, where the registry's own words do not say."""


_FUSED, _STACKED = "a fusion is made over bottleneck adapters", "only bottleneck adapters are stacked"
_ANOTHER = "nothing is trained over a yanked adapter, choose another version or another adapter"
FUSE = Purpose("adapter.parts", _FUSED, _ANOTHER)
"""To train a fusion over them."""
STACK = Purpose("adapter.stack_on", _STACKED, _ANOTHER)
"""To train on top of them."""
WEAR_FUSED = Purpose(
    "adapter.parts",
    _FUSED,
    "no fusion goes without one of its parts; choose another version of the fusion, or train it again over other parts",
    "; push it first, for a fusion holds none of its parts",
)
"""To compute with a fusion, whose manifest names them."""
_NAMED_IN: Mapping[type, tuple[str, Purpose]] = {
    FusionOptions: ("parts", FUSE),
    BottleneckOptions: ("stack_on", STACK),
}
"""Which field of a method's options names its parts, by the options' type."""


@dataclass(frozen=True)
class Part:
    """One part, bound in float32."""

    reference: Reference
    """Its name and its digest."""
    adapter: Adapter[Any]
    stacked_on: Sequence[str] = ()
    """What lay below it when it was trained, the lowest first, as references."""


def parts_of_run(options: object, base: BaseSpec, home: Home | None) -> list[Part]:
    """What a run's options say that the adapter is trained over; none for most methods. Raises what `find_parts`
    raises, and `InvalidInputError` for a fusion of nothing."""
    named = _NAMED_IN.get(type(options))
    if named is None:
        return []
    field, purpose = named
    wanted = getattr(options, field)
    if not wanted and isinstance(options, FusionOptions):
        raise InvalidInputError("adapter.parts: name the adapters to fuse, such as acme/topics:v1")
    return find_parts(wanted, base, home, purpose)


def pinned(options: object, parts: Sequence[Part]) -> Mapping[str, Sequence[str]]:
    """The parts by digest, by the setting that names them; empty for most methods."""
    named = _NAMED_IN.get(type(options))
    return {} if named is None else {f"adapter.{named[0]}": [str(part.reference) for part in parts]}


def find_parts(wanted: Sequence[str], base: BaseSpec, home: Home | None = None, purpose: Purpose = FUSE) -> list[Part]:
    """The parts in this order, each a reference (`acme/topics:v1`) or `NAMESPACE/NAME=DIRECTORY`: an artifact directory
    and the name that it is, or will be, published under.

    References are looked up in the registry at WEFT_REGISTRY, else in the embedded one. Raises what `in_directory`,
    `Reference.parse`, the registry, `validate_directory` and `bind` raise, `PreconditionError` for a part that is
    yanked or of another base, and `InvalidInputError` for one that is no bottleneck adapter; the message begins with
    what the purpose says names them, and the part.
    """
    if not wanted:
        return []
    found: list[Part] = []
    with closing(open_registry(home or Home.from_environment())) as registry:
        for text in wanted:
            try:
                if (part := in_directory(text)) is not None:
                    found.append(_from_directory(registry, *part, base, purpose))
                else:
                    found.append(_from_registry(registry, text, base, purpose))
            except WeftError as error:
                error.begin(f"{purpose.where}: {text}: ")
                raise
    return found


def stacked_on(kind: str, provenance: Mapping[str, Any]) -> Sequence[str]:
    """What lay below an adapter of that kind when it was trained, the lowest first, as references; by its manifest's
    provenance, which is free-form."""
    found = provenance.get(STACKED_ON) if kind == BottleneckSchema.name else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else []


def notes(kind: str, parts: Sequence[Part]) -> list[str]:
    """For people: which parts of an adapter of `kind` were trained on others that do not lie below them here."""
    found: list[str] = []
    below: set[str] = set()
    for part in parts:
        missing = [text for text in part.stacked_on if text.rpartition("@")[2] not in below]
        if missing:
            named = f"{part.reference} was trained on {', '.join(missing)}: "
            if kind == BottleneckSchema.name:
                found.append(f"{named}name that before it, unless it is to lie on another")
            else:
                found.append(f"{named}in a {kind} nothing lies below it, and it reads what it was not trained on")
        if kind == BottleneckSchema.name and part.reference.digest is not None:
            below.add(part.reference.digest)
    return found


def _from_registry(registry: RegistryApi, text: str, base: BaseSpec, purpose: Purpose) -> Part:
    version = _resolved(registry, text, purpose)
    manifest = version.manifest
    _check(manifest, base, purpose)
    with TemporaryDirectory(prefix="weft-part-") as scratch:
        path = Path(scratch) / "artifact"
        pull(registry, version, path)
        adapter = bind(path, manifest, base, dtype=torch.float32, digest=version.digest)
    below = stacked_on(manifest.kind, manifest.provenance)
    return Part(Reference(version.adapter, digest=version.digest), adapter, below)


def _resolved(registry: RegistryApi, text: str, purpose: Purpose) -> Version:
    try:
        version = registry.resolve(text)
    except (InvalidInputError, NotFoundError) as error:
        if error.reason == "YANKED":
            # Its advice, to name the version by its digest, would be refused here.
            why, digest = error.metadata.get("yank_reason", ""), error.metadata.get("digest", "")
            raise _yanked(text, why, digest, purpose) from error
        if isinstance(error, NotFoundError) and purpose.missing:
            raise NotFoundError(
                f"{error.message}{purpose.missing}", reason=error.reason, metadata=error.metadata
            ) from error
        if Path(text).is_dir():
            raise InvalidInputError(
                f"{error.message}; a directory is written with the name that it will be pushed under, "
                f"NAMESPACE/NAME={text}"
            ) from error
        raise
    if version.yanked:
        raise _yanked(text, version.yank_reason, version.digest, purpose)
    return version


def _yanked(text: str, reason: str, digest: str, purpose: Purpose) -> PreconditionError:
    return PreconditionError(
        f"it is yanked ({reason or 'no reason given'}): {purpose.yanked}",
        reason="YANKED",
        metadata={"part": text, "digest": digest},
    )


def _check(manifest: Manifest, base: BaseSpec, purpose: Purpose) -> None:
    """Raises what is wrong with a part whatever its tensors are."""
    manifest.base.check_is(base.fingerprint, "it", "this run's", "choose a part that was trained on this base")
    if manifest.kind != BottleneckSchema.name:
        raise InvalidInputError(
            f"it is an adapter of the kind {manifest.kind}: {purpose.kind}; choose another adapter",
            reason="PART_REFUSED",
        )


def _from_directory(
    registry: RegistryApi, name: AdapterName, directory: Path, base: BaseSpec, purpose: Purpose
) -> Part:
    # Before validation against the base, which says only what does not fit.
    stored = artifact.read(directory)
    _check(stored, base, purpose)
    reference = Reference(name, digest=stored.digest())
    # Where no registry has it, or says so, it is pushed when the run is over, and the push finds out.
    with suppress(*_NO_ANSWER):
        _resolved(registry, str(reference), purpose)
    manifest = validation.validate_directory(directory, base)
    adapter = bind(directory, manifest, base, dtype=torch.float32, digest=stored.digest())
    return Part(reference, adapter, stacked_on(manifest.kind, manifest.provenance))
