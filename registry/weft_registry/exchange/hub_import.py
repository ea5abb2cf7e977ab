"""Adapters from a Hugging Face Hub, or from whatever answers as one: found, bounded, brought, and checked.

A revision is resolved once, to a commit; everything after that is asked by commit. Only the files of an adapter are
fetched: no code, no pickles, nothing that the listing does not say the size of. The client that downloads checks sizes
alone, so the digests that the listing gives are checked here.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from weft_registry import adapterhub_format, artifact
from weft_registry import digest as digests
from weft_registry import manifest as manifests
from weft_registry.errors import (
    CorruptionError,
    ExhaustedError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    Violation,
)
from weft_registry.exchange.adoption import Origin
from weft_registry.manifest import Manifest
from weft_registry.reference import check_label

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_BYTES = 16 << 30
MAX_CARD_BYTES = 4 << 20
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("adapter_model.bin", adapterhub_format.PICKLED)
_SHOWN = 20


@dataclass(frozen=True)
class HubSource:
    """What `hf:org/repo[@revision]` names."""

    repo: str
    revision: str = ""
    """A branch, a tag or a commit; empty is the default branch."""

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Parses it, with or without `hf:`. Raises `InvalidInputError`."""
        repo, at, revision = text.removeprefix("hf:").partition("@")
        if not _REPO.fullmatch(repo) or (at and not revision) or not revision.isprintable() or len(revision) > 200:
            raise InvalidInputError(f"{text[:200]!r}: expected hf:ORG/REPO or hf:ORG/REPO@REVISION")
        return cls(repo, revision)


@dataclass(frozen=True)
class HubFile:
    """A file as the listing has it."""

    path: str
    size: int | None
    sha256: str
    """64 digits, of a large file; else empty."""
    git_oid: str
    """SHA-1 of a small file as git has it; else empty."""


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a repository."""

    source: HubSource
    commit: str
    files: Mapping[str, HubFile]


class Hub:
    """One hub. Raises `NotFoundError`, `ForbiddenError` and `UnavailableError` with the hub's words."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        """`endpoint`: a URL, by default HF_ENDPOINT or huggingface.co. Without a `token`, HF_TOKEN or the one of
        `hf auth login`."""
        from huggingface_hub import HfApi

        self._api: HfApi = HfApi(endpoint=endpoint or None, token=token, library_name="weft")
        self.endpoint: str = self._api.endpoint.rstrip("/")

    def snapshot(self, source: HubSource) -> HubSnapshot:
        """What a revision names now, and what is in it."""
        with self._errors(source):
            info = self._api.model_info(source.repo, revision=source.revision or None, files_metadata=True)
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise UnavailableError(f"{self.endpoint} names no commit for {source}: is it a Hugging Face Hub?")
        files = {}
        for sibling in info.siblings or ():
            lfs = sibling.lfs
            oid = "" if lfs else (sibling.blob_id or "")
            files[sibling.rfilename] = HubFile(sibling.rfilename, sibling.size, lfs.sha256 if lfs else "", oid)
        return HubSnapshot(source, info.sha, files)

    def tags(self, source: HubSource) -> dict[str, str]:
        """The commits of a repository's tags, by name; those that cannot be tags here are left out."""
        with self._errors(source):
            refs = self._api.list_repo_refs(source.repo)
        found = {}
        for ref in refs.tags:
            try:
                found[check_label(ref.name)] = ref.target_commit
            except InvalidInputError:
                continue
        return found

    def origin(self, snapshot: HubSnapshot) -> Origin:
        """Where a snapshot comes from, as provenance says it: nothing in it depends on when it is asked."""
        source = HubSource(snapshot.source.repo)
        with self._errors(source):
            commits = self._api.list_repo_commits(source.repo, revision=snapshot.commit)
        provenance: dict[str, Any] = {"source": str(source), "commit": snapshot.commit}
        if self.endpoint != DEFAULT_ENDPOINT:
            # Without what a URL may have of a user and a password.
            parts = urlsplit(self.endpoint)
            provenance["endpoint"] = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        created = commits[0].created_at.strftime("%Y-%m-%dT%H:%M:%SZ") if commits else None
        return Origin(str(source), provenance, created)

    def download(self, snapshot: HubSnapshot, scratch: Path, max_bytes: int = MAX_BYTES) -> Path:
        """Brings the adapter in a snapshot to a directory under `scratch`.

        Raises `NotFoundError` that lists what is there if that is no adapter, `UnsupportedError` for one that is saved
        as a pickle, `ExhaustedError` for what is larger than `max_bytes`, `CorruptionError` for bytes that do not have
        the digest that the listing gives.
        """
        if artifact.MANIFEST in snapshot.files:
            first = self._fetch(snapshot, [artifact.MANIFEST], scratch, manifests.MAX_BYTES)
            manifest = Manifest.parse((first / artifact.MANIFEST).read_bytes())
            violations = artifact.check_paths((file.path for file in manifest.files), manifest.kind)
            violations += [
                Violation(file.path, f"the manifest lists it, and {snapshot.source} does not have it")
                for file in manifest.files
                if file.path not in snapshot.files
            ]
            if violations:
                raise artifact.refused(str(snapshot.source), violations)
            wanted = [artifact.MANIFEST, *(file.path for file in manifest.files)]
        else:
            wanted = _adapter_files(snapshot)
        return self._fetch(snapshot, wanted, scratch, max_bytes)

    def _fetch(self, snapshot: HubSnapshot, wanted: list[str], scratch: Path, max_bytes: int) -> Path:
        files = [snapshot.files[path] for path in wanted]
        _check_sizes(snapshot, files, max_bytes)
        into = scratch / "download"
        with self._errors(snapshot.source):
            self._api.snapshot_download(
                snapshot.source.repo, revision=snapshot.commit, allow_patterns=wanted, local_dir=into
            )
        # The client keeps its own notes beside the files.
        found = scratch / "files"
        found.mkdir(exist_ok=True)
        for file in files:
            if not (found / file.path).exists():
                _check_bytes(snapshot, file, into / file.path)
                shutil.move(into / file.path, found / file.path)
        return found

    @contextmanager
    def _errors(self, source: HubSource) -> Iterator[None]:
        from huggingface_hub import errors

        # An error of the HTTP library that the client is built on; which one depends on the client's version.
        transport: Any = errors.HfHubHTTPError.__bases__[0]
        where = f"{self.endpoint}/{source.repo}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise ForbiddenError(
                f"{source} is gated: ask for access at {where}, then set HF_TOKEN (or `hf auth login`)", reason="GATED"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise NotFoundError(f"{where} has no revision {source.revision!r}", reason="REVISION_NOT_FOUND") from error
        except errors.RepositoryNotFoundError as error:
            raise NotFoundError(
                f"there is no repository {where}, or it is private: for one that is, set HF_TOKEN (or `hf auth login`)",
                reason="REPOSITORY_NOT_FOUND",
            ) from error
        except errors.HFValidationError as error:
            raise InvalidInputError(f"{source}: {error}") from error
        except errors.OfflineModeIsEnabled as error:
            raise UnavailableError(f"{source} cannot be asked for: HF_HUB_OFFLINE is set", reason="OFFLINE") from error
        except (errors.EntryNotFoundError, errors.FileMetadataError, transport) as error:
            said = " ".join(str(error).split())[:300]
            raise UnavailableError(f"{where} could not be read: {said}", reason="HUB_FAILED") from error


def _adapter_files(snapshot: HubSnapshot) -> list[str]:
    files = snapshot.files
    for weights in (artifact.WEIGHTS, adapterhub_format.WEIGHTS):
        if artifact.CONFIG in files and weights in files:
            card = files.get(artifact.CARD)
            with_card = card is not None and (card.size or 0) <= MAX_CARD_BYTES
            return [artifact.CONFIG, weights, *([artifact.CARD] if with_card else [])]
    pickled = next((name for name in _PICKLES if name in files), None)
    if artifact.CONFIG in files and pickled:
        raise UnsupportedError(
            f"{snapshot.source} has its weights in {pickled}, a pickle, which can run code: save them again in "
            f"safetensors (PEFT: save_pretrained(..., safe_serialization=True)), as {artifact.WEIGHTS}",
            reason="PICKLE",
        )
    there = ", ".join(sorted(files)[:_SHOWN]) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
    raise NotFoundError(
        f"there is no adapter in {snapshot.source}: that is {artifact.CONFIG} and {artifact.WEIGHTS} at the top. There "
        f"is: {there or 'nothing'}",
        reason="NO_ADAPTER",
    )


def _check_sizes(snapshot: HubSnapshot, files: list[HubFile], max_bytes: int) -> None:
    total = 0
    for file in files:
        if file.size is None:
            raise UnavailableError(f"{snapshot.source}: the hub does not say how large {file.path} is")
        most = artifact.MAX_CONFIG_BYTES if file.path == artifact.CONFIG else max_bytes
        total += file.size
        if file.size > most or total > max_bytes:
            raise ExhaustedError(
                f"{snapshot.source}: {file.path} has {file.size} bytes; at most {most} are taken", reason="TOO_LARGE"
            )


def _check_bytes(snapshot: HubSnapshot, file: HubFile, path: Path) -> None:
    if file.sha256:
        right = digests.of_file(path) == f"sha256:{file.sha256}"
    elif file.git_oid:
        data = path.read_bytes()
        right = hashlib.sha1(b"blob %d\0%s" % (len(data), data), usedforsecurity=False).hexdigest() == file.git_oid
    else:
        right = path.stat().st_size == file.size
    if not right:
        raise CorruptionError(
            f"{snapshot.source}: the bytes of {file.path} are not those of commit {snapshot.commit}: try again",
            reason="DIGEST_MISMATCH",
        )
