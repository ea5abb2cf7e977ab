"""Where a run begins at an adapter that is there already, in a directory or a registry: its values become the first
ones."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact, validation
from weft_registry.api import Version
from weft_registry.errors import InvalidInputError, WeftError
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_registry.named import directory_of, or_directory
from weft_registry.transfer import open_registry, pull
from weft_trainer.config.strict import ConfigError
from weft_trainer.methods import METHODS
from weft_trainer.methods.method import Method
from weft_trainer.methods.parts import Part
from weft_trainer.methods.worn import bound

_SHOWN = 3
_INSTEAD = "nothing is trained over a yanked adapter; say in adapter.stack_on what this one lies on instead"


@dataclass(frozen=True, eq=False)
class Start:
    """An adapter that was found; its values are not read yet."""

    text: str
    """As the configuration says it."""
    manifest: Manifest
    digest: str
    directory: Path | None
    """Where it is, unless it is in a registry."""
    version: Version | None
    """What it is in a registry, unless it is in a directory."""
    home: Home

    def read(
        self, method: Method, stored: StoredBase, stack_on: Sequence[str] | None = None
    ) -> tuple[Adapter[Any], Sequence[Part]]:
        """(it, in float32, for a model of `method`; what it was trained over, or `stack_on` instead of what it was
        stacked on). Raises `ConfigError` for another kind, and what validating, pulling and binding it raise."""
        if self.manifest.kind != method.kind:
            makers = [name for name, other in METHODS.items() if other.kind == self.manifest.kind]
            raise ConfigError(
                "start",
                f"{self.text} is of the kind {self.manifest.kind}, and {method.name} trains the kind {method.kind}; "
                f"take one of these methods: {', '.join(makers)}",
            )
        try:
            with self._here() as directory:
                return bound(directory, stored, self.home, stack_on, _INSTEAD)
        except WeftError as error:
            # Which of the run's adapters it is, those know nothing of.
            error.begin(f"start: {self.text}: ")
            raise

    def check_alike(self, params: Any, wanted: Any) -> None:
        """Raises `ConfigError` where its parameters, `params`, are not those that the configuration asks for."""
        differing = _differences(wanted, params)
        if differing:
            raise ConfigError(
                "start",
                f"{self.text} has another shape than this run: {'; '.join(differing)}; say the same here, or leave "
                "adapter out",
            )

    def describe(self) -> str:
        """One line for people."""
        yanked = ""
        if self.version is not None and self.version.yanked:
            yanked = f", which was yanked ({self.version.yank_reason or 'no reason given'})"
        return f"starts at {self.text} ({self.digest}){yanked}"

    def provenance(self) -> Mapping[str, Any]:
        """What the new artifact's manifest says of it."""
        return {"parent_version": self.digest}

    @contextmanager
    def _here(self) -> Generator[Path]:
        if self.directory is not None:
            validation.validate_directory(self.directory, None)
            yield self.directory
            return
        assert self.version is not None, "it is in a registry"
        with (
            tempfile.TemporaryDirectory(prefix="weft-start-") as scratch,
            closing(open_registry(self.home)) as registry,
        ):
            directory = Path(scratch) / "artifact"
            pull(registry, self.version, directory)
            yield directory


def find_start(text: str, output: Path, home: Home) -> Start:
    """The adapter at a directory, or else the version that a reference names in the registry at WEFT_REGISTRY, else in
    the embedded one.

    Raises `NotFoundError` where there is none, `InvalidInputError` for what is neither or will be replaced by the run,
    and what the registry raises: it gives a yanked version to who asks for its digest alone. The message begins with
    the key.
    """
    try:
        directory = directory_of(text)
        if directory is None:
            with closing(open_registry(home)) as registry, or_directory(text):
                version = registry.resolve(text)
            return Start(text, version.manifest, version.digest, None, version, home)
        if directory.resolve() == output.resolve():
            raise InvalidInputError(f"{text} is what this run replaces; write to another output")
        manifest = artifact.read(directory)
    except WeftError as error:
        error.begin("start: ")
        raise
    return Start(text, manifest, manifest.digest(), directory, None, home)


def _differences(ours: Any, theirs: Any) -> list[str]:
    """What two adapters of one kind differ in, for people; nothing where the values of one fit the other."""
    found = []
    for field in fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if mine == other:
            continue
        if isinstance(mine, Mapping):
            keys = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
            found.append(f"{field.name} differs at {_few(keys)}")
        elif not isinstance(mine, tuple):
            found.append(f"{field.name} is {other} there and {mine} here")
        elif sorted(mine, key=str) != sorted(other, key=str):
            more, less = [name for name in other if name not in mine], [name for name in mine if name not in other]
            said = [f"it has {_few(more)}, which are not here"] if more else []
            said += [f"it lacks {_few(less)}, which are here"] if less else []
            found.append(f"{field.name}: {' and '.join(said)}")
    return found


def _few(names: list[Any]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(str(name) for name in names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
