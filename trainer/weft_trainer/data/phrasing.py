"""Records of any fields, written as examples with the templates of a file.

Training records are written with one template each (`phrasings` of them where that is said), as evenly as numbers
allow. Evaluation writes every record twice, with a template of training and with a held-out one, neither of them
inverted, so that the two scores are over the same records. Fields that no template of the file reads are reported.
"""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft_registry.errors import InvalidInputError
from weft_trainer.data.formats import Message, Row, RowError
from weft_trainer.data.records import Record, RecordFile
from weft_trainer.data.rows import Problems, Reading, Rows
from weft_trainer.data.templates import Template, TemplateFile
from weft_trainer.data.words import written

SEEN, UNSEEN = "seen templates", "unseen templates"


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
                examples = [render(template, file, record) for template in order]
            except RowError as error:
                problems.add(record.number, error)
                continue
            rows += examples
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


def _fill(pattern: str, file: TemplateFile, record: Mapping[str, Any]) -> str:
    parts = []
    for literal, name, _, _ in string.Formatter().parse(pattern):
        parts.append(literal)
        if name is not None:
            parts.append(written(name, record, file.words))
    return "".join(parts)
