"""One hostile artifact: how it is made, and what whoever sends it is told.

A case changes the directory of a valid artifact. It is pushed as a directory, which a client refuses, and sent to a
server by a client that checks nothing, which the server refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry import artifact, canonical
from weft_registry import digest as digests

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One entry of the corpus."""

    name: str
    make: Make
    says: str
    """In the error's message, or in one of its violations, when the directory is pushed."""
    wire_says: str
    """The same when its files and its manifest are sent as they are; empty where the wire cannot carry the case."""
    kind: str = "lora"
    """Of the valid artifact that it starts from."""


class Cases:
    """The cases of one subject, in order. A generator's name is its case's."""

    def __init__(self) -> None:
        self._cases: list[Case] = []

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases)

    def __call__(self, says: str, *, wire: str | None = None, kind: str = "lora") -> Callable[[Make], Make]:
        """Registers the generator below. `wire`: what the server says, where that is something else; "" where the wire
        cannot carry it."""

        def register(make: Make) -> Make:
            self.add(make.__name__, make, says, wire=wire, kind=kind)  # type: ignore[attr-defined]
            return make

        return register

    def add(self, name: str, make: Make, says: str, *, wire: str | None = None, kind: str = "lora") -> None:
        """Registers a generator that a loop made."""
        self._cases.append(Case(name, make, says, says if wire is None else wire, kind))


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest's document, and writes it in canonical form."""
    path = directory / artifact.MANIFEST
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical.dumps(document))


def rewrite_manifest(directory: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes the manifest's bytes. Raises where that changed nothing."""
    path = directory / artifact.MANIFEST
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.write_bytes(after)


def put_file(directory: Path, name: str, data: bytes, media_type: str | None = None) -> None:
    """Writes a file, and lists it in the manifest with its right size and digest."""
    (directory / name).write_bytes(data)
    entry = {
        "path": name,
        "size": len(data),
        "sha256": digests.of_bytes(data),
        "media_type": media_type or artifact.media_type(name),
    }

    def change(document: dict[str, Any]) -> None:
        others = [file for file in document["files"] if file["path"] != name]
        document["files"] = sorted([*others, entry], key=lambda file: str(file["path"]))

    edit_manifest(directory, change)


def edit_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes adapter_config.json, and lists it with its new digest."""
    config = json.loads((directory / artifact.CONFIG).read_bytes())
    change(config)
    put_file(directory, artifact.CONFIG, json.dumps(config).encode())


def rewrite_config(directory: Path, data: bytes) -> None:
    """Puts these bytes in the place of adapter_config.json."""
    put_file(directory, artifact.CONFIG, data)


def put_weights(directory: Path, data: bytes) -> None:
    """Puts these bytes in the place of the weights; the manifest's table of tensors stays that of the valid ones."""
    put_file(directory, artifact.WEIGHTS, data)
