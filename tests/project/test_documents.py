"""The documents name what exists: commands, make targets, files."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from weft_client.cli.app import app

BLOCK = re.compile(r"^( *)```(?:\w+)?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _code(path: Path) -> list[str]:
    """The lines of code in a document: of its blocks, and between backticks."""
    text = path.read_text()
    blocks = [line.strip().removeprefix("$ ") for match in BLOCK.finditer(text) for line in match[2].splitlines()]
    return blocks + INLINE.findall(BLOCK.sub("", text))


def test_every_command_in_a_document_is_one(documents: list[Path], root: Path) -> None:
    context = click.Context(app)
    checked, unknown = 0, []
    for path in documents:
        for line in _code(path):
            words = line.split()
            if len(words) < 2 or words[0] != "weft" or not re.fullmatch(r"[a-z]+", words[1]):
                continue
            checked += 1
            command = app.get_command(context, words[1])
            group = command.commands if isinstance(command, click.Group) else {}
            if command is None or (group and len(words) > 2 and words[2] not in group):
                unknown.append(f"{path.relative_to(root)}: {line}")
    assert not unknown, "\n".join(unknown)
    assert checked > 20


def test_every_option_in_a_document_is_one(documents: list[Path], root: Path) -> None:
    context = click.Context(app)
    unknown = []
    for path in documents:
        for line in _code(path):
            words = line.split("#")[0].split("|")[0].split()
            if len(words) < 2 or words[0] != "weft":
                continue
            command = app.get_command(context, words[1]) if re.fullmatch(r"[a-z]+", words[1]) else app
            if isinstance(command, click.Group) and command is not app and len(words) > 2:
                command = command.commands.get(words[2])
            if command is None:
                continue  # The test above reports it.
            known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
            unknown += [
                f"{path.relative_to(root)}: {word} in: {line}"
                for word in (w.strip("[]").split("=")[0] for w in words[2:])
                if word.startswith("--") and word not in known
            ]
    assert not unknown, "\n".join(unknown)


def test_every_make_target_in_a_document_is_one(documents: list[Path], root: Path) -> None:
    targets = {*re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE)}
    unknown = [
        f"{path.relative_to(root)}: {line}"
        for path in documents
        for line in _code(path)
        if (match := re.match(r"make ([a-z][a-z-]*)", line)) and match[1] not in targets
    ]
    assert not unknown, "\n".join(unknown)


def test_every_relative_link_leads_somewhere(documents: list[Path], root: Path) -> None:
    assert len(documents) > 12
    broken = [
        f"{path.relative_to(root)}: {link}"
        for path in documents
        for link in LINK.findall(path.read_text())
        if not re.match(r"[a-z]+:|#", link) and not (path.parent / link.split("#")[0]).exists()
    ]
    assert not broken, "\n".join(broken)


def test_every_link_into_a_document_names_one_of_its_headings(documents: list[Path], root: Path) -> None:
    anchors = {path.resolve(): _anchors(path) for path in documents}
    checked, broken = 0, []
    for path in documents:
        for link in LINK.findall(path.read_text()):
            file, hash_, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path.resolve()
            if hash_ and not re.match(r"[a-z]+:", link) and target in anchors:
                checked += 1
                if anchor not in anchors[target]:
                    broken.append(f"{path.relative_to(root)}: {link}")
    assert not broken, "\n".join(broken)
    assert checked > 3


def _anchors(path: Path) -> set[str]:
    """What a link may name in a document, as GitHub makes it of headings: repeated ones are numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def test_every_decision_record_has_its_three_parts(root: Path) -> None:
    records = sorted((root / "docs" / "adr").glob("[0-9]*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for path in records:
        headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
        assert headings[:3] == ["Context", "Decision", "Consequences"], path.name
    index = (root / "docs" / "adr" / "README.md").read_text()
    missing = [path.name for path in records if f"({path.name})" not in index]
    assert not missing, f"not in docs/adr/README.md: {', '.join(missing)}"


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt"]
)
def test_the_files_that_everybody_looks_for_are_there(root: Path, name: str) -> None:
    assert (root / name).stat().st_size > 0


def test_changelog_follows_the_version(root: Path) -> None:
    import weft

    text = (root / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert weft.__version__ in text
