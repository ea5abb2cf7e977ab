"""The adapters that another is trained over, a fusion's parts or what lies below a bottleneck adapter: from a registry,
or from artifact directories that will be pushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from weft_adapters.binding import bind
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact, validation
from weft_registry.api import RegistryApi, Version
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError, WeftError
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_registry.parts import in_directory
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import open_registry, pull
from weft_trainer.config.adapter import BottleneckOptions, FusionOptions

Options = TypeVar("Options")
_NAMED_IN: Mapping[type, str] = {FusionOptions: "parts", BottleneckOptions: "stack_on"}
"""Which field of a method's options names its parts, by the options' type."""


@dataclass(frozen=True)
class Part:
    """One part, bound in float32."""

    reference: Reference
    """Its name and its digest."""
    adapter: Adapter[Any]


def parts_of_run(options: object, base: BaseSpec, home: Home | None) -> list[Part]:
    """What a run's options say that the adapter is trained over; none for most methods. Raises what `find_parts`
    raises, and `InvalidInputError` for a fusion of nothing."""
    field = _NAMED_IN.get(type(options))
    if field is None:
        return []
    wanted = getattr(options, field)
    if not wanted and isinstance(options, FusionOptions):
        raise InvalidInputError("adapter.parts: name the adapters to fuse, such as acme/topics:v1")
    return find_parts(wanted, base, home, f"adapter.{field}")


def pinned(options: object, parts: Sequence[Part]) -> Mapping[str, Sequence[str]]:
    """The parts by digest, by the setting that names them; empty for most methods."""
    field = _NAMED_IN.get(type(options))
    return {} if field is None else {f"adapter.{field}": [str(part.reference) for part in parts]}


def find_parts(
    wanted: Sequence[str], base: BaseSpec, home: Home | None = None, where: str = "adapter.parts"
) -> list[Part]:
    """The parts in this order, each a reference (`acme/topics:v1`) or `NAMESPACE/NAME=DIRECTORY`: an artifact directory
    and the name that it is, or will be, published under. `where` says who names them, for messages.

    References are looked up in the registry at WEFT_REGISTRY, else in the embedded one. Raises what `in_directory`,
    `Reference.parse`, the registry, `validate_directory` and `bind` raise, and `PreconditionError` for a part that is
    yanked or of another base; the message begins with `where` and the part.
    """
    found: list[Part] = []
    registry = None
    try:
        for text in wanted:
            try:
                if (part := in_directory(text)) is not None:
                    found.append(_from_directory(*part, base))
                else:
                    registry = registry or open_registry(home or Home.from_environment())
                    found.append(_from_registry(registry, text, base))
            except WeftError as error:
                error.begin(f"{where}: {text}: ")
                raise
    finally:
        if registry is not None:
            registry.close()
    return found


def _from_registry(registry: RegistryApi, text: str, base: BaseSpec) -> Part:
    version = _resolved(registry, text)
    _check_base(version.manifest, base)
    with TemporaryDirectory(prefix="weft-part-") as scratch:
        path = Path(scratch) / "artifact"
        pull(registry, version, path)
        adapter = bind(path, version.manifest, base, dtype=torch.float32, digest=version.digest)
    return Part(Reference(version.adapter, digest=version.digest), adapter)


def _resolved(registry: RegistryApi, text: str) -> Version:
    try:
        version = registry.resolve(text)
    except (InvalidInputError, NotFoundError) as error:
        if error.reason == "YANKED":
            # Its advice, to name the version by its digest, would be refused here.
            raise _yanked(text, error.metadata.get("yank_reason", ""), error.metadata.get("digest", "")) from error
        if Path(text).is_dir():
            raise InvalidInputError(
                f"{error.message}; a directory is written with the name that it will be pushed under, "
                f"NAMESPACE/NAME={text}"
            ) from error
        raise
    if version.yanked:
        raise _yanked(text, version.yank_reason, version.digest)
    return version


def _yanked(text: str, reason: str, digest: str) -> PreconditionError:
    return PreconditionError(
        f"it is yanked ({reason or 'no reason given'}): nothing is trained over a yanked adapter, choose another "
        "version or another adapter",
        reason="YANKED",
        metadata={"part": text, "digest": digest},
    )


def _check_base(manifest: Manifest, base: BaseSpec) -> None:
    manifest.base.check_is(base.fingerprint, "it", "this run's", "choose a part that was trained on this base")


def _from_directory(name: AdapterName, directory: Path, base: BaseSpec) -> Part:
    # Before validation against the base, which says only what does not fit.
    stored = artifact.read(directory)
    _check_base(stored, base)
    manifest = validation.validate_directory(directory, base)
    digest = stored.digest()
    return Part(Reference(name, digest=digest), bind(directory, manifest, base, dtype=torch.float32, digest=digest))
