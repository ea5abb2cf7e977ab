"""The manifest: what an artifact is, in one canonical JSON document whose digest is the version's identity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.base import BaseFingerprint
from weft_registry.errors import InvalidInputError

SCHEMA_VERSION = 1
FILE_NAME = "adapter_manifest.json"
MAX_BYTES = 8 << 20
_KEYS = (
    "schema_version",
    "kind",
    "name",
    "created",
    "license",
    "base",
    "adapter",
    "tensors",
    "files",
    "tokenizer",
    "provenance",
    "metrics",
)
_TENSOR_KEYS: Mapping[str, type] = {"name": str, "dtype": str, "shape": list, "sha256": str}
_FILE_KEYS: Mapping[str, type] = {"path": str, "size": int, "sha256": str, "media_type": str}
_METRIC_KEYS: Mapping[str, type] = {"name": str, "value": str, "dataset_sha256": str, "split": str}
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of adapter_model.safetensors."""

    name: str
    dtype: str
    """As safetensors spells it: "F32", "BF16", ..."""
    shape: tuple[int, ...]
    sha256: str
    """Digest of the tensor's bytes."""


@dataclass(frozen=True)
class FileEntry:
    """One file of the artifact, the manifest itself excepted."""

    path: str
    size: int
    sha256: str
    media_type: str


@dataclass(frozen=True)
class Metric:
    """One measured figure. `value` is a decimal in a string: canonical JSON has no floats."""

    name: str
    value: str
    dataset_sha256: str
    split: str


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest. `tokenizer` and `provenance` are free-form; the rest is checked."""

    kind: str
    name: str
    created: str
    license: str
    base: BaseFingerprint
    adapter: Mapping[str, Any]
    tensors: Sequence[TensorEntry]
    files: Sequence[FileEntry]
    tokenizer: Mapping[str, Any]
    provenance: Mapping[str, Any]
    metrics: Sequence[Metric]
    schema_version: int = SCHEMA_VERSION

    def canonical_bytes(self) -> bytes:
        """The bytes that the version's digest is taken over."""
        document = {key: getattr(self, key) for key in _KEYS}
        document["base"] = self.base.as_json()
        document["tensors"] = [{**vars(tensor), "shape": list(tensor.shape)} for tensor in self.tensors]
        document["files"] = [vars(file) for file in self.files]
        document["metrics"] = [vars(metric) for metric in self.metrics]
        return canonical.dumps(document)

    def digest(self) -> str:
        """The version's identity."""
        return digests.of_bytes(self.canonical_bytes())

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(file.size for file in self.files)

    @classmethod
    def parse(cls, data: bytes, *, canonical_only: bool = False) -> Manifest:
        """Parses a manifest, strictly. Raises `InvalidInputError` naming the key; unknown keys are refused.

        With `canonical_only`, bytes that are not in canonical form are refused, too.
        """
        if len(data) > MAX_BYTES:
            raise InvalidInputError(f"manifest: {len(data)} bytes, at most {MAX_BYTES}")
        document = canonical.loads(data, "manifest")
        if canonical_only and canonical.written(document) != data:
            raise InvalidInputError("manifest: not in canonical form: sorted keys, no white space, no escapes")
        version = document.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise InvalidInputError(f"manifest.schema_version: {version!r}; this Weft reads {SCHEMA_VERSION}")
        for key in document:
            if key not in _KEYS:
                raise InvalidInputError(f"manifest.{key[:100]}: unknown key")
        for key, kind in (
            ("kind", str),
            ("name", str),
            ("created", str),
            ("license", str),
            ("base", dict),
            ("adapter", dict),
            ("tensors", list),
            ("files", list),
            ("tokenizer", dict),
            ("provenance", dict),
            ("metrics", list),
        ):
            if key not in document:
                raise InvalidInputError(f"manifest.{key}: missing")
            if type(document[key]) is not kind:
                raise InvalidInputError(f"manifest.{key}: expected {kind.__name__}")
        if not _TIME.fullmatch(document["created"]):
            raise InvalidInputError("manifest.created: expected UTC time as 2026-01-31T12:00:00Z")
        return cls(
            kind=document["kind"],
            name=document["name"],
            created=document["created"],
            license=document["license"],
            base=BaseFingerprint.from_json(document["base"], "manifest.base"),
            adapter=document["adapter"],
            tensors=[_tensor(t, i) for i, t in enumerate(document["tensors"])],
            files=[_file(f, i) for i, f in enumerate(document["files"])],
            tokenizer=document["tokenizer"],
            provenance=document["provenance"],
            metrics=[_metric(m, i) for i, m in enumerate(document["metrics"])],
        )


def _tensor(entry: Any, index: int) -> TensorEntry:
    what = f"manifest.tensors[{index}]"
    _check_keys(entry, _TENSOR_KEYS, what)
    for size in entry["shape"]:
        if type(size) is not int or size < 0:
            raise InvalidInputError(f"{what}.shape: expected whole numbers")
    digests.check(entry["sha256"], f"{what}.sha256")
    return TensorEntry(entry["name"], entry["dtype"], tuple(entry["shape"]), entry["sha256"])


def _file(entry: Any, index: int) -> FileEntry:
    what = f"manifest.files[{index}]"
    _check_keys(entry, _FILE_KEYS, what)
    if entry["size"] < 0:
        raise InvalidInputError(f"{what}.size: negative")
    digests.check(entry["sha256"], f"{what}.sha256")
    return FileEntry(**entry)


def _metric(entry: Any, index: int) -> Metric:
    _check_keys(entry, _METRIC_KEYS, f"manifest.metrics[{index}]")
    return Metric(**entry)


def _check_keys(entry: Any, keys: Mapping[str, type], what: str) -> None:
    if not isinstance(entry, dict) or entry.keys() != keys.keys():
        raise InvalidInputError(f"{what}: expected an object with the keys {', '.join(keys)}")
    for key, kind in keys.items():
        if type(entry[key]) is not kind:
            raise InvalidInputError(f"{what}.{key}: expected {kind.__name__}")
