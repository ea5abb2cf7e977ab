"""Several phrasings of one task, as FLAN trains instructions (Wei et al. 2021, arXiv:2109.01652, section 2.1).

A file of templates makes examples of records with any fields:

    words: {label: {0: "no", 1: "yes"}}          what values of a field are written as
    templates:
      - name: question
        prompt: "{premise}\\nDoes it follow that {hypothesis}?\\nAnswer:"
        completion: " {label}"
      - name: premise for a hypothesis           turned around: it generates what the others read
        inverted: true
        prompt: "Write a sentence from which one can tell that {hypothesis}: {label}.\\n"
        completion: "{premise}"
      - name: entailment                         never trained on, only evaluated
        held_out: true
        prompt: "Premise: {premise}\\nHypothesis: {hypothesis}\\nEntailment:"
        completion: " {label}"

`{{` and `}}` are braces; a list is one "- item" a line.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_trainer.config import strict
from weft_trainer.config.strict import ConfigError
from weft_trainer.config.yaml_source import YamlSource
from weft_trainer.data.words import with_words

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Template:
    """One phrasing."""

    name: str
    """What reports call it; unlike all others of the file."""
    prompt: str
    """The pattern of what the model reads."""
    completion: str
    """The pattern of what it answers. A space that begins the answer belongs here, not to the prompt's end."""
    held_out: bool = False
    """Only evaluated."""
    inverted: bool = False
    """It generates what other templates read. Only trained on: such an answer has no one right wording to score."""


@dataclass(frozen=True)
class Phrasings:
    """The phrasings of one task, as their file says them."""

    templates: tuple[Template, ...]
    """At least one that is neither held out nor inverted."""
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the values of a field are written as: {"label": {"0": "no"}}. A value that is not there is an error."""
    chat: bool = False
    """Each prompt is a user's turn in the base's chat template, and not plain text."""

    @property
    def training(self) -> tuple[Template, ...]:
        """Those that training examples are written with."""
        return tuple(template for template in self.templates if not template.held_out)

    @property
    def seen(self) -> tuple[Template, ...]:
        """Those of training that are scored."""
        return tuple(template for template in self.training if not template.inverted)

    @property
    def unseen(self) -> tuple[Template, ...]:
        """Those that only evaluation uses."""
        return tuple(template for template in self.templates if template.held_out)

    @property
    def fields(self) -> frozenset[str]:
        """Those that any template reads."""
        patterns = [text for template in self.templates for text in (template.prompt, template.completion)]
        return frozenset(name for pattern in patterns for name in fields_of(pattern))


@dataclass(frozen=True)
class TemplateFile(Phrasings):
    """A file of phrasings."""

    uri: str = field(kw_only=True)
    """The path as it was given."""
    sha256: str = field(kw_only=True)
    """Digest of the file."""


def load_templates(path: Path) -> TemplateFile:
    """The templates of a YAML file.

    Raises `NotFoundError` if there is no such file, `InvalidInputError` with line and column for what is wrong with it:
    besides wrong keys, a pattern without a field, a prompt that holds its own answer, an inverted template that
    generates nothing that others read.
    """
    source = YamlSource(path)
    try:
        found = strict.read(Phrasings, with_words(source.document))
        _check(found)
    except InvalidInputError as error:
        raise source.locate(error) from error
    return TemplateFile(found.templates, found.words, found.chat, uri=str(path), sha256=digests.of_file(path))


def fields_of(pattern: str) -> list[str]:
    """The fields that a pattern reads. Raises `ValueError` for a brace that is none, or anything but a bare name."""
    found = []
    for _, name, spec, conversion in string.Formatter().parse(pattern):
        if name is None:
            continue
        if not _FIELD.fullmatch(name) or spec or conversion:
            raise ValueError(f"{name!r} is no name of a field; double the braces that are text")
        found.append(name)
    return found


def _check(file: Phrasings) -> None:
    names: set[str] = set()
    read_by_others: set[str] = set()
    fields: list[tuple[list[str], list[str]]] = []
    for index, template in enumerate(file.templates):
        at = f"templates[{index}]"
        if template.name in names:
            raise ConfigError(f"{at}.name", f"{template.name!r} is another template's already")
        names.add(template.name)
        both = []
        for key in ("prompt", "completion"):
            try:
                both.append(fields_of(getattr(template, key)))
            except ValueError as error:
                raise ConfigError(f"{at}.{key}", f"not a pattern: {error}") from error
            if not both[-1]:
                raise ConfigError(f"{at}.{key}", "it reads no field, so that it is the same for every record")
        prompt, completion = both
        if set(completion) <= set(prompt):
            raise ConfigError(f"{at}.prompt", f"it gives the answer away: it reads {', '.join(completion)} too")
        if template.held_out and template.inverted:
            raise ConfigError(f"{at}.held_out", "an inverted template is not scored, so it cannot be held out for it")
        if not template.inverted:
            read_by_others.update(prompt)
        fields.append((prompt, completion))
    for index, (template, (_, completion)) in enumerate(zip(file.templates, fields, strict=True)):
        if template.inverted and not read_by_others & set(completion):
            raise ConfigError(
                f"templates[{index}].inverted", "it generates nothing that the other templates' prompts read"
            )
    if not file.seen:
        raise ConfigError("templates", "none is left to train with and to score: each is held out or inverted")
    for name in file.words:
        if name not in file.fields:
            raise ConfigError(f"words.{name}", f"no template reads it; they read {', '.join(sorted(file.fields))}")
