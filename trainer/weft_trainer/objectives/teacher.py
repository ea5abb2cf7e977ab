"""Who teaches a distillation: a stored base, or a stored base that wears an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weft_adapters.base.load import StoredBase
from weft_adapters.kinds.kind import MergeRefusedError
from weft_registry import artifact
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError, WeftError
from weft_registry.home import Home
from weft_registry.manifest import Manifest
from weft_trainer.config.objective import DistillOptions, worn
from weft_trainer.config.run import PACKABLE, TrainConfig
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import method_of_kind
from weft_trainer.methods.virtual_tokens import Room
from weft_trainer.methods.worn import bound, open_base, wear
from weft_trainer.modeling.adapted import AdaptedModel

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher that was found to fit its student; not loaded yet."""

    name: str
    """As the configuration says it."""
    stored: StoredBase
    directory: Path | None
    """The artifact that the base wears."""
    manifest: Manifest | None
    """Its manifest."""
    merged: bool
    pad: int
    """The tokenizer's."""
    home: Home

    def load(self, dtype: torch.dtype, device: torch.device) -> AdaptedModel:
        """The model, of which nothing is trained. Raises what binding and merging the artifact raise."""
        model = wear(self.stored, self.directory, dtype, self.home, merged=self.merged, device=device)
        return model.requires_grad_(False)

    def check_room(self, longest: int) -> None:
        """Raises `ConfigError` unless its context holds examples of so many tokens."""
        room = Room.of(self.manifest, self.stored.spec)
        if longest > room.tokens:
            # The least that an example can have.
            shorter = f"set data.max_length to {room.tokens}, or " if room.tokens > 1 else ""
            raise ConfigError(
                "objective.teacher",
                f"the longest example has {longest} tokens, and the context of {self.name} holds {room.tokens}"
                f"{room.less}; {shorter}take a teacher with more room",
            )

    def describe(self) -> str:
        """One line for people."""
        layers = f"{self.stored.spec.num_layers} layers of {self.stored.spec.hidden_size}"
        return f"{self.name} ({self.stored.spec.fingerprint.id}, {layers})"

    def provenance(self) -> Mapping[str, Any]:
        """What an artifact's manifest says of it; canonical JSON."""
        fingerprint = self.stored.spec.fingerprint
        found: dict[str, Any] = {"id": fingerprint.id, "weights_sha256": fingerprint.weights_sha256}
        if self.manifest is not None:
            found |= {"artifact": self.manifest.digest(), "merged": self.merged}
        return found


def find_teacher(options: DistillOptions, config: TrainConfig, student: StoredBase, home: Home) -> Teacher:
    """The teacher of a run. Raises `NotFoundError` for a base or an artifact that is not there, `ConfigError` for one
    that cannot teach this student, naming why."""
    name, directory = worn(options.teacher)
    try:
        stored = open_base(name, home)
        manifest = None if directory is None else _manifest(directory, stored, options.merged, config, home)
    except WeftError as error:
        if isinstance(error, MergeRefusedError):
            error.message += "; leave it out"
            error.begin("objective.merged: ")
        else:
            error.begin("objective.teacher: ")
        raise
    same = stored.spec.fingerprint.weights_sha256 == student.spec.fingerprint.weights_sha256
    if same and directory is None:
        raise ConfigError(
            "objective.teacher",
            f"{name} is the student's own base, and has nothing to teach it; take a larger one, or BASE+ARTIFACT",
        )
    _check_tokens(name, stored, config.base, student)
    if options.top_k is not None and options.top_k >= stored.spec.vocab_size:
        raise ConfigError(
            "objective.top_k", f"{options.top_k}, but the vocabulary has {stored.spec.vocab_size} tokens; leave it out"
        )
    if config.data.packing:
        _check_packing(options.teacher, stored, manifest, options.merged, config.data.max_length)
    pad = BaseTokenizer(student.tokenizer_dir, student.config.eos_token_ids).pad
    return Teacher(options.teacher, stored, directory, manifest, options.merged, pad, home)


def _manifest(directory: Path, stored: StoredBase, merged: bool, config: TrainConfig, home: Home) -> Manifest:
    """Of what the teacher wears. Raises what wearing it would, as far as one linear tells."""
    if not (directory / artifact.MANIFEST).is_file():
        raise NotFoundError(f"no artifact directory at {directory}; `weft pull` brings a published version")
    if directory.resolve() == config.output.resolve():
        raise InvalidInputError(f"{directory} is what this run replaces; write to another output")
    manifest = artifact.read(directory)
    manifest.base.check_is(stored.spec.fingerprint, str(directory), "the teacher's", "write its own base before the +")
    adapter, _ = bound(directory, stored, home)
    if merged:
        first = next(iter(stored.spec.linears))
        adapter.kind.overlay(first, stored.int4(first), adapter)
    return manifest


def _check_tokens(name: str, stored: StoredBase, student_name: str, student: StoredBase) -> None:
    # tokenizer.json decides which ids a text has; a chat template does not matter, the student's writes the texts.
    theirs, ours = (digests.of_file(base.tokenizer_dir / _TOKENIZER) for base in (stored, student))
    if theirs != ours:
        raise ConfigError(
            "objective.teacher",
            f"{name} has another tokenizer than {student_name} ({theirs} and {ours}), so its targets are other tokens; "
            "take a base of the same family",
        )
    if stored.spec.vocab_size != student.spec.vocab_size:
        raise ConfigError(
            "objective.teacher",
            f"{name} has {stored.spec.vocab_size} logits and {student_name} {student.spec.vocab_size}; take a base "
            "with the same vocabulary",
        )


def _check_packing(name: str, stored: StoredBase, manifest: Manifest | None, merged: bool, length: int) -> None:
    windows = [window for window in stored.config.sliding_windows if window is not None]
    if windows and length > min(windows):
        raise ConfigError("data.packing", f"layers of the teacher see {min(windows)} tokens back; leave packing out")
    if manifest is not None and not merged and method_of_kind(manifest.kind).name not in PACKABLE:
        raise ConfigError(
            "data.packing", f"{name} wears a {manifest.kind}, which does not keep packed examples apart; leave it out"
        )
