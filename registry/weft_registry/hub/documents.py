"""The Hub's JSON documents about one adapter, made from its versions and workspaces. Reads no files and no catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from weft_registry import artifact
from weft_registry.api import Version
from weft_registry.hub.revisions import Found, commit_id
from weft_registry.kinds import KIND_SCHEMAS
from weft_registry.kinds.schema import PeftSchema
from weft_registry.reference import LATEST
from weft_registry.workspaces.branch_state import MAIN
from weft_registry.workspaces.workspaces import Workspace


@dataclass(frozen=True)
class HubFile:
    """One file of a version, the manifest included, or of a workspace."""

    path: str
    size: int
    digest: str

    @property
    def sha256(self) -> str:
        """64 hexadecimal digits: the file's ETag."""
        return self.digest.removeprefix("sha256:")


def commit_of(found: Found) -> str:
    """The commit id of a version or of a workspace."""
    return found.head if isinstance(found, Workspace) else commit_id(found.digest)


def files_of(version: Found) -> list[HubFile]:
    """The files of a version or a workspace, by name."""
    if isinstance(version, Workspace):
        return [HubFile(file.path, file.size_bytes, file.sha256) for file in version.files]
    manifest = HubFile(artifact.MANIFEST, len(version.manifest_bytes), version.digest)
    listed = [HubFile(file.path, file.size, file.sha256) for file in version.manifest.files]
    return sorted([*listed, manifest], key=lambda file: file.path)


def model_info(version: Found, *, blobs: bool = False) -> dict[str, Any]:
    """ModelInfo of an adapter at one version or workspace. `blobs` adds sizes and digests to the files."""
    if isinstance(version, Workspace):
        return _unpublished(version, blobs)
    manifest = version.manifest
    card: dict[str, Any] = {"base_model": manifest.base.id, "tags": tags_of(version)}
    if manifest.license:
        card["license"] = manifest.license
    info = {
        "id": str(version.adapter),
        "modelId": str(version.adapter),
        "author": version.adapter.namespace,
        "sha": commit_id(version.digest),
        "lastModified": _time(version.published_at),
        "createdAt": _time(version.published_at),
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(version),
        "cardData": card,
        "usedStorage": version.size_bytes,
        "siblings": [_sibling(file, blobs) for file in files_of(version)],
    }
    if isinstance(KIND_SCHEMAS.get(manifest.kind), PeftSchema):
        info["library_name"] = "peft"
    return info


def _unpublished(workspace: Workspace, blobs: bool) -> dict[str, Any]:
    """What nobody has validated says nothing about itself but its files."""
    return {
        "id": str(workspace.adapter),
        "modelId": str(workspace.adapter),
        "author": workspace.adapter.namespace,
        "sha": workspace.head,
        "lastModified": _time(workspace.updated_at),
        "createdAt": _time(workspace.updated_at),
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": ["weft"],
        "usedStorage": sum(file.size_bytes for file in workspace.files),
        "siblings": [_sibling(file, blobs) for file in files_of(workspace)],
    }


def tags_of(version: Version) -> list[str]:
    """What a listing can be filtered by: library, kind, base model, licence."""
    manifest = version.manifest
    tags = ["weft", manifest.kind, "safetensors"]
    if isinstance(KIND_SCHEMAS.get(manifest.kind), PeftSchema):
        tags.append("peft")
    tags += [f"base_model:{manifest.base.id}", f"base_model:adapter:{manifest.base.id}"]
    if manifest.license:
        tags.append(f"license:{manifest.license}")
    return tags


def tree(version: Found) -> list[dict[str, Any]]:
    """The files of a version or a workspace. An artifact is one flat directory: there are no folders."""
    return [
        {
            "type": "file",
            "path": file.path,
            "size": file.size,
            "oid": pointer_oid(file),
            "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": len(_pointer(file))},
        }
        for file in files_of(version)
    ]


def refs(versions: Sequence[Version], heads: Mapping[str, str]) -> dict[str, Any]:
    """Aliases as branches, tags as tags. `main` is `latest`, unless a tag or an alias of that name is there. `heads`:
    the commit ids of the workspaces, which are branches where no version has their name."""
    branches, tags, names = [], [], set()
    for version in versions:
        commit = commit_id(version.digest)
        names |= {*version.aliases, *version.tags}
        branches += [{"name": a, "ref": f"refs/heads/{a}", "targetCommit": commit} for a in version.aliases]
        tags += [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": commit} for t in version.tags]
    if MAIN not in names:
        latest = [branch for branch in branches if branch["name"] == LATEST]
        branches += [{**branch, "name": MAIN, "ref": f"refs/heads/{MAIN}"} for branch in latest]
    names |= {branch["name"] for branch in branches}
    branches += [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": head}
        for name, head in heads.items()
        if name not in names
    ]
    return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}


def commit(version: Found) -> dict[str, Any]:
    """One version or workspace, as an entry of the history."""
    if isinstance(version, Workspace):
        title = f"{version.branch}: not published"
        return {"id": version.head, "title": title, "message": "", "date": _time(version.updated_at), "authors": []}
    title = ", ".join((*version.tags, *version.aliases)) or version.digest
    return {
        "id": commit_id(version.digest),
        "title": title,
        "message": version.digest,
        "date": _time(version.published_at),
        "authors": [],
    }


def pointer_oid(file: HubFile) -> str:
    """The git object id that the file would have on the Hub: that of its LFS pointer."""
    pointer = _pointer(file)
    return hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer), usedforsecurity=False).hexdigest()


def _pointer(file: HubFile) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (file.sha256.encode(), file.size)


def _sibling(file: HubFile, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": file.path}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": len(_pointer(file))}
    return {"rfilename": file.path, "size": file.size, "blobId": pointer_oid(file), "lfs": lfs}


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
