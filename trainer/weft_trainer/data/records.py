"""A file of records, whatever holds them: JSONL, a JSON array, or Parquet. Knows nothing of what a record means."""

from __future__ import annotations

import codecs
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError, NotFoundError, UnsupportedError

_PARQUET = b"PAR1"
# First bytes of what people give instead of text, and what to do about it.
_OTHERS = {
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"PK\x03\x04": "a zip archive, or a table of a spreadsheet: unpack it, or save it as JSONL",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
}
_NOT_UTF8 = "not UTF-8: save the file as that"
_NUL = "a NUL byte: the file is damaged, or no text; write it again"


@dataclass(frozen=True)
class Record:
    """One record of a file."""

    number: int
    """Its line, from 1; in Parquet its row, from 1."""
    value: Any
    """As JSON has it. None where `problem` says why there is no value."""
    problem: str = ""
    """Why there is none."""


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
        return place(self.uri, self.unit, number)


def place(uri: str, unit: str, number: int) -> str:
    """A line or row of a file, for messages."""
    return f"{uri}:{number}" if unit == "line" else f"{uri}: row {number}"


def read_records(path: Path) -> RecordFile:
    """The records of `path`; what holds them is seen from its first bytes, never from its name.

    Raises `NotFoundError` if there is no file, `InvalidInputError` if it cannot be read or holds nothing,
    `UnsupportedError` for Parquet without pyarrow. A JSONL line that is no JSON is a `Record` with a problem.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no data file at {path}") from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}; give a file of records") from error
    if data[:4] == _PARQUET:
        container, records = "Parquet", _parquet(data, path)
    else:
        for first, what in _OTHERS.items():
            if data.startswith(first):
                raise InvalidInputError(f"{path}:1: neither Parquet nor UTF-8, but {what}")
        text = data.removeprefix(codecs.BOM_UTF8)
        if text.lstrip().startswith(b"["):
            container, records = "JSON array", _array(text, path)
        else:
            container, records = "JSONL", _lines(text)
    if not records:
        why = f"{container} without a record" if data.strip() else "the file is empty"
        raise InvalidInputError(f"{path}: no examples: {why}; see what wrote it, or leave it out")
    return RecordFile(str(path), digests.of_bytes(data), container, tuple(records))


def _lines(data: bytes) -> list[Record]:
    # One after another, so that one line that is no text is one record that cannot be read.
    found = (_line(number, line) for number, line in enumerate(data.split(b"\n"), 1))
    return [record for record in found if record is not None]


def _line(number: int, data: bytes) -> Record | None:
    """The record of a line; None for a blank one."""
    try:
        line = data.decode()
    except UnicodeDecodeError:
        return Record(number, None, _NOT_UTF8)
    if not line.strip():
        return None
    if "\0" in line:
        return Record(number, None, _NUL)
    try:
        return _record(number, json.loads(line), line)
    except json.JSONDecodeError as error:
        # Not its whole message, which counts lines from this one.
        return Record(number, None, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Record(number, None, f"not JSON: {error}")


def _array(data: bytes, path: Path) -> list[Record]:
    """Item by item, because the standard decoder does not say where an item began."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}:{_line_of(error.start, data)}: {_NOT_UTF8}") from error
    if b"\0" in data:
        raise InvalidInputError(f"{path}:{_line_of(data.index(0), data)}: {_NUL}")
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
        except json.JSONDecodeError as error:
            problem = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            raise InvalidInputError(f"{path}:{error.lineno}: not a JSON array: {problem}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path}:{line}: not a JSON array: {error}") from error
        records.append(_record(line, value, text[at:end]))
        at = _skip(text, end)
    if text[at + 1 :].strip():
        raise InvalidInputError(f"{path}: something follows the JSON array; JSONL has no brackets around its lines")
    return records


def _line_of(at: int, data: bytes) -> int:
    return data.count(b"\n", 0, at) + 1


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
        table = parquet.read_table(io.BytesIO(data))
        return [Record(number, value) for number, value in enumerate(table.to_pylist(), 1)]
    except UnicodeDecodeError:
        # Row by row, which takes several times as long, and says which.
        return [_row(number, table) for number in range(1, table.num_rows + 1)]
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).strip().replace("\n", " ")
        raise InvalidInputError(f"{path}: not Parquet, or cut short ({why}): write or copy it again") from error


def _row(number: int, table: Any) -> Record:
    try:
        (value,) = table.slice(number - 1, 1).to_pylist()
    except UnicodeDecodeError:
        return Record(number, None, "not UTF-8: write its texts as that")
    return Record(number, value)
