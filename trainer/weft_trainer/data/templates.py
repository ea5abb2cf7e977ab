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

Training records are written with one template each (`phrasings` of them where that is said), as evenly as numbers
allow. Evaluation writes every record twice, with a template of training and with a held-out one, neither of them
inverted, so that the two scores are over the same records. `{{` and `}}` are braces; a list is one "- item" a line.
Fields that no template of the file reads are reported.

The keys of `words` are values as JSON has them: true, false, null, a number or a text. 1 is 1.0, and "1"; a field that
is null is written where `words` has null, and otherwise counts as absent.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
_MOST_WORDS = 10
"""How many of a field's values a message lists."""


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
        found = strict.read(Phrasings, _with_words(source.document))
        _check(found)
    except InvalidInputError as error:
        raise source.locate(error) from error
    return TemplateFile(found.templates, found.words, found.chat, uri=str(path), sha256=digests.of_file(path))


def _with_words(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document, with the keys of `words` as texts: YAML's true as JSON writes it."""
    if not isinstance(document.get("words"), Mapping):
        return document
    words: dict[Any, Any] = {}
    for name, of_field in document["words"].items():
        words[name] = of_field
        if isinstance(of_field, Mapping):
            words[name] = {}
            for value, word in of_field.items():
                text = _text(value)
                if text in words[name]:
                    raise ConfigError(
                        f"words.{name}.{text}", "said twice, as a text and as a value; keep one of the two"
                    )
                words[name][text] = word
    return {**document, "words": words}


@dataclass(frozen=True)
class FieldRecords:
    """The records of one file, or a part of them, that templates will make examples of."""

    file: RecordFile
    """The whole of it."""
    records: tuple[Record, ...]
    """Those of this part."""
    split: str
    """"train" or "eval"."""
    held_out: bool = False
    """The rest of the file is trained on, and reports what is not used of it."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def uri(self) -> str:
        """The file."""
        return self.file.uri

    def part(self, split: str, indices: Sequence[int]) -> FieldRecords:
        """Some of the records, under another split's name."""
        held_out = self.held_out or split != self.split
        return FieldRecords(self.file, tuple(self.records[i] for i in indices), split, held_out)

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
        problems = Problems(self.file.where, len(self.file.records), invalid)
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
        # Once a file: of its training part, or of the first phrasings that it is scored with.
        unused = () if self.held_out or label == UNSEEN else self._unused(file)
        reading = Reading(self.file.container, self.file.unit, problems.left_out(), unused)
        return Rows(self.uri, self.file.sha256, self.split, tuple(rows), reading, label, file.sha256)

    def _unused(self, file: TemplateFile) -> tuple[tuple[str, int], ...]:
        """The keys of the whole file's records that no template reads, and in how many records they are."""
        known = file.fields
        values = [record.value for record in self.file.records if isinstance(record.value, dict)]
        keys = (key for value in values for key, item in value.items() if item is not None and key not in known)
        return tuple(Counter(keys).most_common())


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
        if name in record and "null" in file.words.get(name, {}):
            return file.words[name]["null"]
        raise RowError(f"no field {name!r}, which a template reads")
    if isinstance(value, list):
        if not value or not all(isinstance(item, str | int | float) for item in value):
            raise RowError(f"field {name!r}: expected texts in the list", repr(value))
        return "\n".join(f"- {_text(item)}" for item in value)
    if not isinstance(value, str | int | float):
        raise RowError(f"field {name!r}: expected text, a number or a list of them", type(value).__name__)
    if name not in file.words:
        return _text(value)
    words = file.words[name]
    for text in _spellings(value):
        if text in words:
            return words[text]
    listed = ", ".join([*list(words)[:_MOST_WORDS], *(["..."] if len(words) > _MOST_WORDS else [])])
    # Whoever wrote yes for a text has true.
    misread = isinstance(value, str) and words.keys() & {"true", "false"}
    hint = " (without quotes, YAML's yes and no are true and false)" if misread else ""
    raise RowError(f"field {name!r}: words has only {listed}{hint}", repr(value))


def _text(value: Any) -> str:
    """A value as JSON writes it, and a text as it is."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _spellings(value: str | int | float) -> list[str]:
    """The keys of `words` that stand for a value: a whole number is the same with and without a point."""
    if isinstance(value, float) and value.is_integer():
        return [str(value), str(int(value))]
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value), f"{value}.0"]
    return [_text(value)]


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
