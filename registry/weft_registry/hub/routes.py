"""Which page of the Hub a request asks for. Works on the path as it was sent: a revision arrives percent-encoded as one
segment, and decoding the whole path first would make two of it. Knows no registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote

from weft_registry.errors import InvalidInputError, NotFoundError

Page = Literal[
    "models",
    "model",
    "tree",
    "refs",
    "commits",
    "file",
    "whoami",
    "auth-check",
    "paths-info",
    "create",
    "delete",
    "validate-yaml",
    "preupload",
    "commit",
    "branch",
    "tag",
    "lfs-batch",
    "lfs-verify",
    "lfs-object",
    "move",
    "settings",
    "super-squash",
    "pull-request",
    "duplicate",
]
_READ = ("GET", "HEAD")
METHODS: Mapping[Page, tuple[str, ...]] = {
    "paths-info": ("POST",),
    "create": ("POST",),
    "delete": ("DELETE",),
    "validate-yaml": ("POST",),
    "preupload": ("POST",),
    "commit": ("POST",),
    "branch": ("POST", "DELETE"),
    "tag": ("POST", "DELETE"),
    "lfs-batch": ("POST",),
    "lfs-verify": ("POST",),
    "lfs-object": ("PUT",),
    "move": ("POST",),
    "settings": ("PUT",),
    "super-squash": ("POST",),
    "pull-request": ("POST",),
    "duplicate": ("POST",),
}
"""The methods of a page; those that are not here are read."""
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
    """Of a file or a folder in the repository; of an LFS object, its sha256."""
    method: str = "GET"

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that the page knows."""
        return METHODS.get(self.page, _READ)

    @property
    def writes(self) -> bool:
        """Whether its requests are `weft_registry.hub.writing`'s to answer."""
        return self.page in METHODS and self.page != "paths-info"


def route(raw_path: bytes, method: str = "GET") -> Route:
    """The page at a path.

    Raises `InvalidInputError` for a path that no client sends in good faith, `NotFoundError` (`PAGE_NOT_FOUND`) for one
    that is not here, and `NotFoundError` (`ADAPTER_NOT_FOUND`) for what can be no adapter: a repository without a
    namespace, a dataset, a space.
    """
    return replace(_route(segments(raw_path)), method=method)


def _route(found: list[str]) -> Route:
    match found:
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
        case ["api", "models", namespace, name, "auth-check"]:
            return Route("auth-check", f"{namespace}/{name}")
        case ["api", "models", namespace, name, "auth-check", "write"]:
            return Route("auth-check", f"{namespace}/{name}", path="write")
        case ["api", "models", namespace, name, ("paths-info" | "preupload" | "commit" | "branch" | "tag") as page, at]:
            return Route(page, f"{namespace}/{name}", at)
        case ["api", "models", namespace, name, "settings"]:
            return Route("settings", f"{namespace}/{name}")
        case ["api", "models", namespace, name, "super-squash", revision]:
            return Route("super-squash", f"{namespace}/{name}", revision)
        case ["api", "models", namespace, name, "discussions", *_]:
            return Route("pull-request", f"{namespace}/{name}")
        case ["api", "models", namespace, name, ("duplicate" | "lfs-files"), *_]:
            return Route("duplicate", f"{namespace}/{name}")
        case ["api", "whoami-v2"]:
            return Route("whoami")
        case ["api", "validate-yaml"]:
            return Route("validate-yaml")
        case ["api", "repos", ("create" | "delete" | "move") as page]:
            return Route(page)
        case [namespace, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
            return Route("lfs-batch", f"{namespace}/{name.removesuffix('.git')}")
        case [namespace, name, "info", "lfs", "verify"] if name.endswith(".git"):
            return Route("lfs-verify", f"{namespace}/{name.removesuffix('.git')}")
        case [namespace, name, "info", "lfs", "objects", oid] if name.endswith(".git"):
            return Route("lfs-object", f"{namespace}/{name.removesuffix('.git')}", path=oid)
        case ["api", "models", name] | ["api", "models", name, "revision" | "tree", *_] | [name, "resolve", _, *_]:
            raise _no_repo(f"{name}: an adapter's name is NAMESPACE/NAME")
        case ["api", ("datasets" | "spaces" | "kernels") as kind, *_]:
            raise _no_repo(f"this registry keeps adapters, as models: it has no {kind}")
        case [("datasets" | "spaces" | "kernels") as kind, _, _, "resolve", *_]:
            raise _no_repo(f"this registry keeps adapters, as models: it has no {kind}")
        case [namespace, name, "resolve", revision, *path] if path:
            return Route("file", f"{namespace}/{name}", revision, "/".join(path))
    raise NotFoundError(
        "there is nothing here: this registry answers the Hub's requests about models", reason="PAGE_NOT_FOUND"
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
