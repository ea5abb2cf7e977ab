"""A file of records, whatever holds them: JSONL, a JSON array, or Parquet. Knows nothing of what a record means."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError, UnsupportedError

_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Record:
    """One record of a file."""

    number: int
    """Its line, from 1; in Parquet its row, from 1."""
    value: Any
    """As JSON has it. None where `problem` says why there is no value."""
    problem: str = ""
    """Why the line is no JSON."""


@dataclass(frozen=True)
class RecordFile:
    """All records of one file."""

    uri: str
    """The path as it was given."""
    sha256: str
    """Digest of the file's bytes."""
    container: str
    """"JSONL", "JSON array" or "Parquet"."""
    records: tuple[Record, ...]

    @property
    def unit(self) -> str:
        """What `Record.number` counts: "line" or "row"."""
        return "row" if self.container == "Parquet" else "line"

    def where(self, number: int) -> str:
        """The place of a record, for messages."""
        return f"{self.uri}:{number}" if self.unit == "line" else f"{self.uri}: row {number}"


def read_records(path: Path) -> RecordFile:
    """The records of `path`; what holds them is seen from its first bytes, never from its name.

    Raises `NotFoundError` if there is no file, `InvalidInputError` if it cannot be read or holds nothing,
    `UnsupportedError` for Parquet without pyarrow. A JSONL line that is no JSON is a `Record` with a problem.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no data file at {path}") from None
    if data[:4] == _PARQUET:
        container, records = "Parquet", _parquet(data, path)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path}: neither Parquet nor UTF-8: {error}") from error
        if text.lstrip().startswith("["):
            container, records = "JSON array", _array(text, path)
        else:
            container, records = "JSONL", _lines(text)
    if not records:
        raise InvalidInputError(f"{path}: no examples")
    return RecordFile(str(path), digests.of_bytes(data), container, tuple(records))


def _lines(text: str) -> list[Record]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append(_record(number, json.loads(line), line))
            except (ValueError, RecursionError) as error:
                records.append(Record(number, None, f"not JSON: {error}"))
    return records


def _array(text: str, path: Path) -> list[Record]:
    """Item by item, because the standard decoder does not say where an item began."""
    decoder = json.JSONDecoder()
    records: list[Record] = []
    at = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        if records:
            if text[at : at + 1] != ",":
                raise InvalidInputError(
                    f"{path}:{line}: not a JSON array: expected ',' or ']' after item {len(records)}"
                )
            at = _skip(text, at + 1)
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path}:{line}: not a JSON array: {error}") from error
        records.append(_record(line, value, text[at:end]))
        at = _skip(text, end)
    if text[at + 1 :].strip():
        raise InvalidInputError(f"{path}: something follows the JSON array; JSONL has no brackets around its lines")
    return records


def _record(number: int, value: Any, source: str) -> Record:
    """A record; one with a problem where `source` escapes half of a character, which no tokenizer can read."""
    if "\\ud" in source.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            return Record(number, None, f"not text: {half} is half of a character, without its other half")
    return Record(number, value)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _parquet(data: bytes, path: Path) -> list[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UnsupportedError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; install it, or write the file as JSONL"
        ) from None
    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidInputError(f"{path}: not Parquet: {error}") from error
    return [Record(number, row) for number, row in enumerate(rows, 1)]
