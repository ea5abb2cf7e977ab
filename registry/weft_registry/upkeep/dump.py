"""The catalog in a file that any database can be filled from: canonical JSON, one row a line.

The first line says what it is: format, schema revision, moment, and how many blobs of how many bytes the catalog needs.
Then come the blobs, each once, by digest; then the rows, table by table, what is referred to first; and in the last
line how many rows there were and the digest of everything before it. Bytes are base64, floats hexadecimal as C writes
them, so that what is read is what was written.

Leases, open uploads and holds on collection are of their moment and stay out, and so does what a mirror's store holds:
another store holds other things.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy import Connection, Table

import weft
from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.catalog import records, upgrade
from weft_registry.catalog import tables as t
from weft_registry.errors import CorruptionError, InvalidInputError, PreconditionError, UnsupportedError
from weft_registry.upkeep import holds, roots

FORMAT = "weft-registry-catalog"
FORMAT_VERSION = 1
_LEFT_OUT = (t.blob_leases, t.uploads, t.held_blobs)
TABLES = tuple(table for table in t.metadata.sorted_tables if table not in _LEFT_OUT)
"""What is dumped, in an order in which it can be inserted."""
_KNOWN = {table.name: table for table in TABLES}
_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Header:
    """What a dump says of itself."""

    schema: str
    """The revision of its tables."""
    weft: str
    """The version of Weft that wrote it."""
    taken_at_us: int
    blobs: int
    blob_bytes: int


@dataclass(frozen=True)
class Blob:
    """A blob that the dumped catalog needs."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Row:
    """A row of a table, its values as the database takes them."""

    table: Table
    values: Mapping[str, Any]
    line_bytes: int


def write(connection: Connection, path: Path) -> Header:
    """Writes the catalog of the connection's transaction to a file, over what was there."""
    blobs = roots.referenced()
    total = blobs.subquery()
    count, size = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(total.c.size_bytes), 0))
    ).one()
    header = Header(upgrade.HEAD, weft.__version__, records.now_us(), count, int(size))
    with path.open("wb") as file:
        sink, rows = _Sink(file), 0
        sink.line({"format": FORMAT, "format_version": FORMAT_VERSION, **vars(header)})
        for blob in connection.execute(blobs.execution_options(yield_per=1000)):
            sink.line({"blob": blob.sha256, "size_bytes": blob.size_bytes})
        for table in TABLES:
            for row in connection.execute(_select(table)):
                values = {column.name: _plain(column, row._mapping[column.name]) for column in table.columns}
                sink.line({"table": table.name, "row": values})
                rows += 1
        sink.line({"rows": rows, "sha256": sink.digest})
    return header


class Dump:
    """A dump in a file, or in a part of one."""

    def __init__(self, path: Path, offset: int = 0, size_bytes: int | None = None) -> None:
        """Reads the first line. Raises `CorruptionError` if this is no dump, `UnsupportedError` for a newer format,
        `PreconditionError` for the tables of another Weft."""
        self._path = path
        self._offset = offset
        self._size_bytes = path.stat().st_size - offset if size_bytes is None else size_bytes
        self.header = _header(next(self._lines(), b""))

    def verify(self) -> None:
        """Reads everything. Raises `CorruptionError` if it is not whole, line by line what was written."""
        sha256, rows, last = hashlib.sha256(), 0, b""
        for number, line in enumerate(self._lines()):
            if number > 1:
                sha256.update(last)
                rows += _is_row(_parsed(last))
            elif number == 1:
                sha256.update(last)
            last = line
        end = _parsed(last)
        if end.get("sha256") != f"sha256:{sha256.hexdigest()}" or end.get("rows") != rows:
            raise _damaged("is cut or changed: its last line is not the digest of what comes before it")

    def blobs(self) -> Iterator[Blob]:
        """The blobs, by digest."""
        for line in islice(self._lines(), 1, None):
            document = _parsed(line)
            if "blob" not in document:
                break
            yield Blob(document["blob"], document["size_bytes"])

    def rows(self) -> Iterator[Row]:
        """The rows, in an order in which they can be inserted."""
        for line in islice(self._lines(), 1, None):
            document = _parsed(line)
            if "table" in document:
                table = _KNOWN[document["table"]]
                values = {name: _value(table.columns[name], value) for name, value in document["row"].items()}
                yield Row(table, values, len(line))

    def _lines(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            left = self._size_bytes
            while left and (line := file.readline(min(left, _MAX_LINE_BYTES))):
                left -= len(line)
                yield line


class _Sink:
    """Writes lines, and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def line(self, document: Mapping[str, Any]) -> None:
        line = canonical.dumps(document) + b"\n"
        self._sha256.update(line)
        self._file.write(line)


def _select(table: Table) -> sa.Select[Any]:
    # A manifest may have megabytes: rows are never read all at once.
    heavy = any(isinstance(column.type, sa.LargeBinary) for column in table.columns)
    statement = sa.select(table).order_by(*table.primary_key.columns)
    if table is t.settings:
        key = t.settings.c.key
        statement = statement.where(key != "schema_version", sa.not_(key.startswith(holds.PREFIX, autoescape=True)))
    return statement.execution_options(yield_per=10 if heavy else 1000)


def _plain(column: sa.Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, sa.LargeBinary):
        return base64.b64encode(value).decode()
    return float(value).hex() if isinstance(column.type, sa.Float) else value


def _value(column: sa.Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, sa.LargeBinary):
        return base64.b64decode(value, validate=True)
    return float.fromhex(value) if isinstance(column.type, sa.Float) else value


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return canonical.loads(line, "the backup's catalog")
    except InvalidInputError as error:
        raise _damaged(f"has a line that is none: {error.message}") from error


def _header(line: bytes) -> Header:
    document = _parsed(line) if line.startswith(b"{") else {}
    if document.get("format") != FORMAT:
        raise _damaged("does not say that it is one")
    if document.get("format_version") != FORMAT_VERSION:
        raise UnsupportedError(
            f"the backup has format {document.get('format_version')}; this Weft knows {FORMAT_VERSION}: upgrade Weft"
        )
    header = Header(**{name: document[name] for name in Header.__dataclass_fields__})
    if header.schema != upgrade.HEAD:
        raise PreconditionError(
            f"the backup has catalog schema {header.schema}, written by Weft {header.weft}; this Weft knows "
            f"{upgrade.HEAD}: restore it with that Weft; any newer one then upgrades the registry when it opens it",
            reason="SCHEMA_MISMATCH",
            metadata={"schema": header.schema},
        )
    return header


def _is_row(document: Mapping[str, Any]) -> bool:
    """Whether a line is a row, and not a blob. Raises `CorruptionError` if it is neither."""
    if "blob" in document:
        digests.check(document["blob"], "the backup's catalog: blob")
        return False
    table = _KNOWN.get(str(document.get("table")))
    if table is None or {column.name for column in table.columns} != set(document.get("row", {})):
        raise _damaged(f"has a row of {str(document.get('table'))[:80]!r} that no catalog of its schema has")
    return True


def _damaged(what: str) -> CorruptionError:
    return CorruptionError(f"the backup's catalog {what}; take another backup", reason="BACKUP_DAMAGED")
