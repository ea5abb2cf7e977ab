"""The adapters that a fusion is made over: from a registry, or from artifact directories that will be pushed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from weft_adapters.binding import bind
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact, validation
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, PreconditionError
from weft_registry.home import Home
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import open_registry, pull


@dataclass(frozen=True)
class Part:
    """One part, bound in float32."""

    reference: Reference
    """Its name and its digest."""
    adapter: Adapter[Any]


def find_parts(wanted: Sequence[str], base: BaseSpec, home: Home | None = None) -> list[Part]:
    """The parts in this order, each a reference (`acme/topics:v1`) or `NAMESPACE/NAME=DIRECTORY`: an artifact directory
    and the name that it is, or will be, published under.

    References are looked up in the registry at WEFT_REGISTRY, else in the embedded one. Raises what `Reference.parse`,
    the registry, `validate_directory` and `bind` raise, and `PreconditionError` for a part that is yanked.
    """
    if not wanted:
        raise InvalidInputError("adapter.parts: name the adapters to fuse, such as acme/topics:v1")
    found: list[Part] = []
    registry = None
    try:
        with TemporaryDirectory(prefix="weft-parts-") as scratch:
            for number, text in enumerate(wanted):
                name, equals, directory = text.partition("=")
                if equals:
                    found.append(_from_directory(AdapterName.parse(name), Path(directory).expanduser(), base))
                    continue
                registry = registry or open_registry(home or Home.from_environment())
                version = registry.resolve(text)
                if version.yanked:
                    raise PreconditionError(
                        f"adapter.parts: {text} is yanked ({version.yank_reason or 'no reason given'}): choose another",
                        reason="YANKED",
                        metadata={"part": text, "digest": version.digest},
                    )
                path = Path(scratch) / str(number)
                pull(registry, version, path)
                adapter = bind(path, version.manifest, base, dtype=torch.float32, digest=version.digest)
                found.append(Part(Reference(version.adapter, digest=version.digest), adapter))
    finally:
        if registry is not None:
            registry.close()
    return found


def _from_directory(name: AdapterName, directory: Path, base: BaseSpec) -> Part:
    manifest = validation.validate_directory(directory, base)
    digest = artifact.read(directory).digest()
    return Part(Reference(name, digest=digest), bind(directory, manifest, base, dtype=torch.float32, digest=digest))
