"""Which files a commit may bring: those of an artifact, its manifest, and what the AdapterHub library saves.

Some files are sent along by clients whatever they upload, and no artifact holds them. They are not taken: told before
the upload that they are ignored, a client leaves them out; where one sends them all the same, they are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft_registry import adapterhub_format, artifact
from weft_registry.errors import InvalidInputError

QUIETLY_DROPPED = (".gitattributes", ".gitignore")
"""They say something about a git repository, which this is not."""
DROPPED = ("training_args.bin", "chat_template.jinja")
"""What transformers' `Trainer` always adds: a pickle and a template, which can run code. People are told of it."""


def is_dropped(path: str) -> bool:
    """Whether a file is left out of what is stored."""
    return path in QUIETLY_DROPPED or path in DROPPED


def check_path(path: str) -> None:
    """Raises `InvalidInputError` for the name of a file that may not be on a branch."""
    if path not in (artifact.MANIFEST, adapterhub_format.WEIGHTS):
        artifact.media_type(path)


def check_paths(paths: Iterable[str]) -> None:
    """Raises `InvalidInputError` for files that may not be on one branch together."""
    names = sorted(paths)
    if len(names) > artifact.MAX_FILES + 1:
        raise InvalidInputError(f"{len(names)} files on one branch; an artifact has at most {artifact.MAX_FILES}")
    seen: dict[str, str] = {}
    for path in names:
        check_path(path)
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            raise InvalidInputError(f"file {path!r} collides with {other!r}: names differ by more than letter case")


def dropped_warning(paths: Iterable[str]) -> str:
    """What people should hear of files that were left out; empty for nothing."""
    told = sorted({path for path in paths if path in DROPPED})
    return f"not stored, since it can run code: {', '.join(told)}" if told else ""
