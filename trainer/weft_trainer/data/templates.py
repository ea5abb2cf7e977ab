"""Several phrasings of one task, as FLAN trains instructions (Wei et al. 2021, arXiv:2109.01652, section 2.1).

A file of templates makes examples of records with any fields:

    words: {label: {"0": "no", "1": "yes"}}      what values of a field are written as
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

Training records are written with one template each (`phrasings` of them where that is said), as evenly as numbers
allow. Evaluation writes every record twice, with a template of training and with a held-out one, neither of them
inverted, so that the two scores are over the same records. `{{` and `}}` are braces; a list is one "- item" a line.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_trainer.config import strict
from weft_trainer.config.strict import ConfigError
from weft_trainer.config.yaml_source import YamlSource
from weft_trainer.data.formats import Message, Row, RowError
from weft_trainer.data.records import Record, RecordFile
from weft_trainer.data.rows import Problems, Reading, Rows

SEEN, UNSEEN = "seen templates", "unseen templates"
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
class TemplateFile:
    """The phrasings of one task."""

    templates: tuple[Template, ...]
    """At least one that is neither held out nor inverted."""
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the values of a field are written as: {"label": {"0": "no"}}. A value that is not there is an error."""
    chat: bool = False
    """Each prompt is a user's turn in the base's chat template, and not plain text."""
    uri: str = ""
    """The path as it was given; not a key of the file."""
    sha256: str = ""
    """Digest of the file; not a key of the file."""

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


def load_templates(path: Path) -> TemplateFile:
    """The templates of a YAML file.

    Raises `NotFoundError` if there is no such file, `InvalidInputError` with line and column for what is wrong with it:
    besides wrong keys, a pattern without a field, a prompt that holds its own answer, an inverted template that
    generates nothing that others read.
    """
    source = YamlSource(path)
    try:
        for key in ("uri", "sha256"):
            if key in source.document:
                raise ConfigError(key, f"unknown key; known: {', '.join(('templates', 'words', 'chat'))}")
        found = strict.read(TemplateFile, source.document)
        _check(found)
    except InvalidInputError as error:
        raise source.locate(error) from error
    return replace(found, uri=str(path), sha256=digests.of_file(path))


@dataclass(frozen=True)
class FieldRecords:
    """The records of one file, or a part of them, that templates will make examples of."""

    file: RecordFile
    """The whole of it."""
    records: tuple[Record, ...]
    """Those of this part."""
    split: str
    """"train" or "eval"."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def uri(self) -> str:
        """The file."""
        return self.file.uri

    def part(self, split: str, indices: Sequence[int]) -> FieldRecords:
        """Some of the records, under another split's name."""
        return FieldRecords(self.file, tuple(self.records[i] for i in indices), split)

    def training_rows(self, templates: TemplateFile, phrasings: int, seed: int, invalid: str) -> Rows:
        """Every record, written with `phrasings` different templates of training.

        Raises `InvalidInputError` if there are not so many, or naming a record that lacks a field; with `invalid`
        "drop" such a record is left out.
        """
        if phrasings > len(templates.training):
            raise InvalidInputError(
                f"data.train: phrasings: {phrasings}, but {templates.uri} has {len(templates.training)} templates to "
                "train with; write more, or lower it"
            )
        return self._write(templates, templates.training, phrasings, seed, invalid, "")

    def evaluation_rows(self, templates: TemplateFile, seed: int, invalid: str | None) -> list[Rows]:
        """Every record written with a template of training, and, if there are any, with a held-out one."""
        seen = self._write(templates, templates.seen, 1, seed, invalid, SEEN)
        if not templates.unseen:
            return [seen]
        return [seen, self._write(templates, templates.unseen, 1, seed, invalid, UNSEEN)]

    def _write(
        self, file: TemplateFile, templates: Sequence[Template], count: int, seed: int, invalid: str | None, label: str
    ) -> Rows:
        rows: list[Row] = []
        problems = Problems(self.file, invalid)
        used: Counter[str] = Counter()
        generator = random.Random(f"{seed}/{self.split}/{label}")
        for record in self.records:
            # The least used ones; which of those that are equal, chance decides.
            order = sorted(templates, key=lambda template: (used[template.name], generator.random()))[:count]
            try:
                written = [render(template, file, record) for template in order]
            except RowError as error:
                problems.add(record.number, error)
                continue
            rows += written
            used.update(template.name for template in order)
        if not rows:
            why = problems.left_out()[0].reason if problems.left_out() else "no records"
            raise InvalidInputError(f"{self.uri}: no examples: {why}")
        reading = Reading(self.file.container, self.file.unit, problems.left_out())
        return Rows(self.uri, self.file.sha256, self.split, tuple(rows), reading, label, file.sha256)


def render(template: Template, file: TemplateFile, record: Record) -> Row:
    """The example that a template makes of a record. Raises `RowError` for a field that is not there or is no text."""
    if record.problem:
        raise RowError(record.problem)
    if not isinstance(record.value, dict):
        raise RowError("expected an object with fields", type(record.value).__name__)
    prompt, completion = (_fill(text, file, record.value) for text in (template.prompt, template.completion))
    for what, text in (("prompt", prompt), ("completion", completion)):
        if not text.strip():
            raise RowError(f"the {what} of template {template.name!r} is empty")
    return Row(
        (Message("user", prompt),) if file.chat else prompt, completion, number=record.number, form=template.name
    )


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


def _fill(pattern: str, file: TemplateFile, record: Mapping[str, Any]) -> str:
    parts = []
    for literal, name, _, _ in string.Formatter().parse(pattern):
        parts.append(literal)
        if name is not None:
            parts.append(_written(name, file, record))
    return "".join(parts)


def _written(name: str, file: TemplateFile, record: Mapping[str, Any]) -> str:
    value = record.get(name)
    if value is None:
        raise RowError(f"no field {name!r}, which a template reads")
    if isinstance(value, list):
        if not value or not all(isinstance(item, str | int | float) for item in value):
            raise RowError(f"field {name!r}: expected texts in the list", repr(value))
        return "\n".join(f"- {item}" for item in value)
    if not isinstance(value, str | int | float):
        raise RowError(f"field {name!r}: expected text, a number or a list of them", type(value).__name__)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if name not in file.words:
        return text
    if text not in file.words[name]:
        raise RowError(f"field {name!r}: words has no such value", repr(text))
    return file.words[name][text]


def _check(file: TemplateFile) -> None:
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
    known = {name for prompt, completion in fields for name in (*prompt, *completion)}
    for name in file.words:
        if name not in known:
            raise ConfigError(f"words.{name}", f"no template reads it; they read {', '.join(sorted(known))}")
