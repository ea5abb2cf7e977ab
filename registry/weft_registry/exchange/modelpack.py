"""A version as a ModelPack artifact: the JSON documents of the CNCF model specification, made from the manifest.

They depend on the version alone, not on where it is written or under which name: the same version has the same OCI
digest for ever. One layer is one file, as it is: a layer's digest is the file's, and nothing is packed or compressed.
See https://github.com/modelpack/model-spec (media types, configuration, layer annotations).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.manifest import Manifest

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHTS_TYPE = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"
TITLE = "org.opencontainers.image.title"
FILE_PATH = "org.cncf.model.filepath"
VERSION_DIGEST = "dev.weft.version.digest"
_DOCUMENTS = (".md", ".txt", ".png")
_PRECISIONS: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Packed:
    """The two documents that make files an artifact; the files are the other blobs."""

    config: bytes
    manifest: bytes


def packed(manifest: Manifest, manifest_bytes: bytes) -> Packed:
    """The documents of a version whose canonical manifest is given, parsed and as bytes."""
    version_digest = digests.of_bytes(manifest_bytes)
    files = [(file.path, file.sha256, file.size) for file in manifest.files]
    files.append((artifact.MANIFEST, version_digest, len(manifest_bytes)))
    layers = [_layer(path, digest, size) for path, digest, size in sorted(files)]
    config = _dumps(_config(manifest, version_digest, [layer["digest"] for layer in layers]))
    annotations = {
        "org.opencontainers.image.created": manifest.created,
        TITLE: manifest.name,
        VERSION_DIGEST: version_digest,
        "dev.weft.kind": manifest.kind,
        "dev.weft.base.id": manifest.base.id,
        "dev.weft.base.weights": manifest.base.weights_sha256,
    }
    if manifest.license:
        annotations["org.opencontainers.image.licenses"] = manifest.license
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digests.of_bytes(config), "size": len(config)},
        "layers": layers,
        "annotations": annotations,
    }
    return Packed(config, _dumps(document))


def _config(manifest: Manifest, version_digest: str, layers: list[str]) -> dict[str, Any]:
    # The specification's schema admits no other keys: what is Weft's own is in the manifest's annotations.
    descriptor: dict[str, Any] = {"createdAt": manifest.created, "version": version_digest}
    if manifest.name:
        descriptor["name"] = manifest.name
    if manifest.license:
        descriptor["licenses"] = [manifest.license]
    dtypes = {tensor.dtype for tensor in manifest.tensors}
    config: dict[str, Any] = {"architecture": "transformer", "format": "safetensors"}
    if len(dtypes) == 1 and (precision := _PRECISIONS.get(next(iter(dtypes)))):
        config["precision"] = precision
    return {"descriptor": descriptor, "modelfs": {"type": "layers", "diffIds": layers}, "config": config}


def _layer(path: str, digest: str, size: int) -> dict[str, Any]:
    if path == artifact.WEIGHTS:
        media_type = WEIGHTS_TYPE
    else:
        media_type = DOCUMENT_TYPE if PurePosixPath(path).suffix.lower() in _DOCUMENTS else SETTINGS_TYPE
    # ORAS takes a file's name from the title, tools of the specification from the file path.
    return {"mediaType": media_type, "digest": digest, "size": size, "annotations": {TITLE: path, FILE_PATH: path}}


def _dumps(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
