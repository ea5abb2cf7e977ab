"""Which page of the Hub a request asks for. Works on the path as it was sent: a revision arrives percent-encoded as one
segment, and decoding the whole path first would make two of it. Knows no registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from weft_registry.errors import InvalidInputError, NotFoundError

Page = Literal["models", "model", "tree", "refs", "commits", "file"]
MAX_PATH_BYTES = 2048


@dataclass(frozen=True)
class Route:
    """A page, and what it is about."""

    page: Page
    repo: str = ""
    """`namespace/name`, not checked yet."""
    revision: str = ""
    """A tag, an alias, a commit id or a digest; empty means `main`."""
    path: str = ""
    """Of a file or a folder in the repository."""


def route(raw_path: bytes) -> Route:
    """The page at a path.

    Raises `InvalidInputError` for a path that no client sends in good faith, `NotFoundError` (`PAGE_NOT_FOUND`) for one
    that is not here, and `NotFoundError` (`ADAPTER_NOT_FOUND`) for what can be no adapter: a repository without a
    namespace, a dataset, a space.
    """
    match segments(raw_path):
        case ["api", "models"]:
            return Route("models")
        case ["api", "models", namespace, name]:
            return Route("model", f"{namespace}/{name}")
        case ["api", "models", namespace, name, "revision", revision]:
            return Route("model", f"{namespace}/{name}", revision)
        case ["api", "models", namespace, name, "tree", revision, *path]:
            return Route("tree", f"{namespace}/{name}", revision, "/".join(path))
        case ["api", "models", namespace, name, "refs"]:
            return Route("refs", f"{namespace}/{name}")
        case ["api", "models", namespace, name, "commits", revision]:
            return Route("commits", f"{namespace}/{name}", revision)
        case ["api", "models", name] | ["api", "models", name, "revision" | "tree", *_] | [name, "resolve", _, *_]:
            raise _no_repo(f"{name}: an adapter's name is NAMESPACE/NAME")
        case ["api", ("datasets" | "spaces" | "kernels") as kind, *_]:
            raise _no_repo(f"this registry keeps adapters, as models: it has no {kind}")
        case [("datasets" | "spaces" | "kernels") as kind, _, _, "resolve", *_]:
            raise _no_repo(f"this registry keeps adapters, as models: it has no {kind}")
        case [namespace, name, "resolve", revision, *path] if path:
            return Route("file", f"{namespace}/{name}", revision, "/".join(path))
    raise NotFoundError(
        "there is nothing here: this registry answers the Hub's read requests about models", reason="PAGE_NOT_FOUND"
    )


def segments(raw_path: bytes) -> list[str]:
    """The segments of a path, decoded one by one. Raises `InvalidInputError`."""
    if len(raw_path) > MAX_PATH_BYTES:
        raise InvalidInputError(f"path: {len(raw_path)} bytes; at most {MAX_PATH_BYTES}")
    found = [_decoded(segment) for segment in raw_path.decode("latin-1").removeprefix("/").split("/")]
    if found[-1] == "":  # One slash at the end means nothing.
        found.pop()
    for segment in found:
        # Nothing here is ever joined to a path on disk; whoever sends these means harm, or is mistaken.
        if segment in ("", ".", "..") or "\\" in segment or "/../" in f"/{segment}/":
            raise InvalidInputError("path: empty segments, '.', '..' and '\\' lead nowhere")
    return found


def _decoded(segment: str) -> str:
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInputError("path: not UTF-8") from None
    if not text.isprintable():
        raise InvalidInputError("path: control characters")
    return text


def _no_repo(message: str) -> NotFoundError:
    return NotFoundError(message, reason="ADAPTER_NOT_FOUND")
