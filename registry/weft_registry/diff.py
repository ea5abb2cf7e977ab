"""What differs between two versions: settings, metrics, tensors. Downloads the weights only where they differ."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from weft_registry import artifact
from weft_registry.api import RegistryApi, Version
from weft_registry.errors import CorruptionError, InvalidInputError
from weft_registry.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from weft_registry.tensor_diff import ProductDiff, TensorDiff

_COMPARED = ("kind", "name", "created", "license", "base", "adapter", "tokenizer", "provenance")


@dataclass(frozen=True)
class SettingDiff:
    """A key of the manifest that is not the same in both. Values are JSON; None: it is not there."""

    key: str
    """With dots: "adapter.r", "provenance.config.training.learning_rate"."""
    old: Any
    new: Any


@dataclass(frozen=True)
class MetricDiff:
    """A metric that either has, as the manifests write it; None: it was not measured."""

    name: str
    split: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class VersionDiff:
    """All of it."""

    old: Version
    new: Version
    settings: tuple[SettingDiff, ...]
    metrics: tuple[MetricDiff, ...]
    tensors: tuple[TensorDiff, ...]
    products: tuple[ProductDiff, ...]
    """Of low-rank adapters of one kind: see `weft_registry.tensor_diff`."""


def diff(registry: RegistryApi, old: Version, new: Version) -> VersionDiff:
    """Compares two versions. Raises what reading them raises, and `CorruptionError` for bytes that are not those that
    were published."""
    # Imported here: comparing manifests needs no numpy.
    from weft_registry.tensor_diff import Weights, diff_products, diff_tensors

    settings, metrics = diff_settings(old.manifest, new.manifest), diff_metrics(old.manifest, new.manifest)
    entries = [_weights_of(version) for version in (old, new)]
    with ExitStack() as stack:
        blobs = {entry.sha256: entry for entry in entries}
        files = {digest: stack.enter_context(_downloaded(registry, entry)) for digest, entry in blobs.items()}
        before, after = (
            Weights(files[entry.sha256], entry.size, version.manifest)
            for entry, version in zip(entries, (old, new), strict=True)
        )
        tensors, products = diff_tensors(before, after), diff_products(before, after)
    return VersionDiff(old, new, settings, metrics, tuple(tensors), tuple(products))


def diff_settings(old: Manifest, new: Manifest) -> tuple[SettingDiff, ...]:
    """The keys that differ, in order."""
    before, after = (_flat(json.loads(each.canonical_bytes())) for each in (old, new))
    return tuple(
        SettingDiff(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


def diff_metrics(old: Manifest, new: Manifest) -> tuple[MetricDiff, ...]:
    """Every metric of either, in the order in which they were written."""
    before, after = ({(m.name, m.split): m.value for m in each.metrics} for each in (old, new))
    return tuple(MetricDiff(*key, before.get(key), after.get(key)) for key in {**before, **after})


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """The compared part of a manifest, nested keys joined by dots. Lists are values."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif value is not None:
            found[prefix] = value

    for key in _COMPARED:
        walk(key, document[key])
    return found


def _weights_of(version: Version) -> FileEntry:
    for file in version.manifest.files:
        if file.path == artifact.WEIGHTS:
            return file
    raise InvalidInputError(f"{version.adapter}@{version.digest} has no {artifact.WEIGHTS} that could be compared")


@contextmanager
def _downloaded(registry: RegistryApi, entry: FileEntry) -> Iterator[BinaryIO]:
    """A blob in a temporary file, its bytes verified."""
    sha256 = hashlib.sha256()
    with tempfile.TemporaryFile(prefix="weft-diff-") as file:
        for chunk in registry.read_blob(entry.sha256):
            sha256.update(chunk)
            file.write(chunk)
        found = "sha256:" + sha256.hexdigest()
        if found != entry.sha256:
            raise CorruptionError(
                f"{entry.path}: the registry sent bytes with digest {found} for {entry.sha256}; see `weft verify`",
                reason="DIGEST_MISMATCH",
                metadata={"digest": entry.sha256, "found": found},
            )
        yield file
