"""Fetches a model directory from a Hugging Face hub: safetensors, configuration, tokenizer; never a pickle."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from weft_registry.errors import InvalidInputError, NotFoundError, UnavailableError

ALLOWED = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "merges.txt", "*.jinja"]
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A repository on a hub, and the branch, tag or commit."""

    repo_id: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubModel:
        """Parses `ORG/REPO[@REV]`. Raises `InvalidInputError`."""
        repo, at, revision = text.partition("@")
        if not _REPO.fullmatch(repo) or (at and not revision):
            raise InvalidInputError(f"hf:{text[:100]}: expected hf:ORG/REPO or hf:ORG/REPO@REVISION")
        return cls(repo, revision or None)


def fetch(model: HubModel, report: Callable[[str], None]) -> tuple[Path, str]:
    """(the snapshot's directory, its commit), in huggingface_hub's own cache. HF_ENDPOINT chooses the hub.

    Raises `NotFoundError` for an unknown repository or revision, `UnavailableError` when the hub cannot be reached.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or None
    where = f"hf:{model.repo_id}" + (f"@{model.revision}" if model.revision else "")
    report(f"fetching {where}" + (f" from {endpoint}" if endpoint else ""))
    try:
        path = Path(
            snapshot_download(model.repo_id, revision=model.revision, allow_patterns=ALLOWED, endpoint=endpoint)
        )
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"{where}: no such repository, or it is private and HF_TOKEN is not set", reason="SOURCE_NOT_FOUND"
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"{where}: no such revision", reason="SOURCE_NOT_FOUND") from error
    except OSError as error:  # what every other error of huggingface_hub derives from
        raise UnavailableError(f"{where}: could not be fetched: {error}", reason="DOWNLOAD_FAILED") from error
    if not _COMMIT.fullmatch(path.name):
        raise UnavailableError(
            f"{where}: the snapshot {path.name!r} is not named by a commit", reason="DOWNLOAD_FAILED"
        )
    return path, path.name
