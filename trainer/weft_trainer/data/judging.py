"""How a judge is asked which of two answers is better: a template, and the two labels it may answer with.

    prompt: |
      Question: {prompt}
      Answer 1: {first}
      Answer 2: {second}
      The better answer is number
    labels: [" 1", " 2"]

The labels are not generated: their log-probabilities are compared (Lee et al. 2023, arXiv:2309.00267, section 2.1).
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

from weft_registry.errors import InvalidInputError
from weft_trainer.config import strict
from weft_trainer.config.strict import ConfigError
from weft_trainer.config.yaml_source import YamlSource
from weft_trainer.data.dataset import Example
from weft_trainer.data.formats import Message, Row
from weft_trainer.data.templates import fields_of
from weft_trainer.data.tokenization import TextEncoder

FIELDS = ("prompt", "first", "second")


@dataclass(frozen=True)
class JudgeTemplate:
    """One way to ask. The defaults are the template that comes with Weft."""

    prompt: str = (
        "A good answer is correct, helpful and harmless, and as short as the question allows. Below are a question and "
        "two answers to it. Say which of the two is the better one.\n\n"
        "Question:\n{prompt}\n\nAnswer 1:\n{first}\n\nAnswer 2:\n{second}\n\nThe better answer is answer"
    )
    """The pattern of what the judge reads, with the fields {prompt}, {first} and {second}."""
    labels: tuple[str, ...] = (" 1", " 2")
    """What the judge answers where the first answer is better, and where the second one is. A space that begins the
    label belongs here, not to the prompt's end. In tokens they differ in the last one only."""
    chat: bool = False
    """The prompt is a user's turn in the base's chat template, and not plain text."""

    def __post_init__(self) -> None:
        try:
            found = fields_of(self.prompt)
        except ValueError as error:
            raise ConfigError("prompt", f"not a pattern: {error}") from error
        for name in FIELDS:
            if found.count(name) != 1:
                raise ConfigError("prompt", f"expected the field {{{name}}} once, found it {found.count(name)} times")
        unknown = sorted(set(found) - set(FIELDS))
        if unknown:
            raise ConfigError("prompt", f"{unknown[0]!r} is no field of a pair; known: {', '.join(FIELDS)}")
        if len(self.labels) != 2 or not all(self.labels) or self.labels[0] == self.labels[1]:
            raise ConfigError("labels", f"expected two different texts, found {list(self.labels)}")

    def ask(self, prompt: str, first: str, second: str) -> Row:
        """The question about a pair in this order; its completion is the first label."""
        values = {"prompt": prompt, "first": first, "second": second}
        parsed = string.Formatter().parse(self.prompt)
        text = "".join(literal + (values[name] if name else "") for literal, name, _, _ in parsed)
        return Row((Message("user", text),) if self.chat else text, self.labels[0])


def load_template(path: Path) -> JudgeTemplate:
    """The template of a YAML file. Raises `NotFoundError` if there is no such file, `InvalidInputError` with line and
    column for what is wrong with it."""
    source = YamlSource(path)
    try:
        return strict.read(JudgeTemplate, source.document)
    except InvalidInputError as error:
        raise source.locate(error) from error


@dataclass(frozen=True)
class Labels:
    """A template's labels in tokens: what both begin with, and what tells them apart."""

    head: tuple[int, ...]
    """Read with the question."""
    last: tuple[int, int]
    """Compared."""

    @classmethod
    def of(cls, template: JudgeTemplate, encoder: TextEncoder) -> Labels:
        """Raises `InvalidInputError` where they do not differ in the last token only: one of several tokens would be
        judged by its length too."""
        first, second = (tuple(encoder.completion(label)) for label in template.labels)
        if not first or not second or first[:-1] != second[:-1] or first[-1] == second[-1]:
            raise InvalidInputError(
                f"labels: {template.labels[0]!r} is the tokens {list(first)}, {template.labels[1]!r} {list(second)}; "
                "they have to differ in the last one only: take single letters or digits"
            )
        return cls(first[:-1], (first[-1], second[-1]))

    def example(self, question: Row, encoder: TextEncoder) -> Example:
        """A question whose completion is the one token that tells the labels apart."""
        ids = (*encoder.prompt(question), *self.head)
        return Example((*ids, self.last[0]), len(ids))
