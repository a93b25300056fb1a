"""Reads the rows of a damaged spool file that SQLite can still read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from waooaw_celery.ledger.database.rows import RowKind
from waooaw_celery.ledger.database.sqlite.connection import SafeConnection
from waooaw_celery.ledger.write.spool.table import SpoolRow, create_table

#: Row ids that are tried one by one between damaged pages.
_MAX_IDS = 1_000_000
#: SQLite's default page size in bytes.
_PAGE_BYTES = 4096
_SELECT = "SELECT id, kind, message_id, text, refused FROM spool"
#: Why a row is not written to the ledger of which only a part can be read.
DAMAGED = "it was damaged in the spool file"


def readable_rows(path: Path) -> Iterator[SpoolRow]:
    """Yield the rows that SQLite can read in a damaged spool file. Reading changes the file.

    Args:
        path: a copy of the file.
    """
    if not _can_open(path):
        _repair_first_page(path)
    with closing(sqlite3.connect(path, factory=SafeConnection)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        # First from both ends up to the damage, then row by row between: there may be more than one damaged page.
        ascending = _Scan(connection, f"{_SELECT} ORDER BY id")
        yield from ascending
        if ascending.complete:
            return
        descending = _Scan(connection, f"{_SELECT} ORDER BY id DESC", until=ascending.last_id)
        yield from descending
        if not descending.complete:
            for id_ in _ids_between(connection, ascending.last_id, descending.last_id):
                yield from _Scan(connection, f"{_SELECT} WHERE id = {id_:d}")


class _Scan:
    """Yields rows until one that is known already, or until one that cannot be read."""

    def __init__(self, connection: Any, query: str, until: int | None = None) -> None:
        self._connection, self._query, self._until = connection, query, until
        self.last_id: int | None = None
        self.complete = False

    def __iter__(self) -> Iterator[SpoolRow]:
        try:
            for id_, *values in self._connection.execute(self._query):
                if id_ == self._until:
                    break
                self.last_id = id_
                yield _checked_row(*values)
        except sqlite3.Error:
            return
        self.complete = True


def _can_open(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, factory=SafeConnection)) as connection:
            connection.execute("SELECT id FROM spool LIMIT 1").fetchone()
    except sqlite3.Error:
        return False
    return True


def _repair_first_page(path: Path) -> None:
    """Replace the first page, which has the schema. It is the same in every spool file."""
    if path.stat().st_size <= _PAGE_BYTES:
        return
    sibling(path, "-wal").unlink(missing_ok=True)
    template = path.with_name("template.sqlite3")
    with closing(sqlite3.connect(template, factory=SafeConnection)) as connection:
        create_table(connection)
    with path.open("r+b") as file:
        page = bytearray(template.read_bytes()[:_PAGE_BYTES])
        page[18:20] = b"\x01\x01"  # read and write version: no WAL
        page[28:32] = (path.stat().st_size // _PAGE_BYTES).to_bytes(4, "big")  # size in pages
        page[92:96] = page[24:28]  # "version valid for" equals the change counter: the size is valid
        file.write(page)


def _checked_row(kind: Any, message_id: Any, text: Any, refused: Any) -> SpoolRow:
    """Return a row, marked as refused if it cannot be a row of the ledger."""
    if refused is None and not _is_ledger_row(kind, message_id, text):
        refused = DAMAGED
    return str(kind), str(message_id), str(text), None if refused is None else str(refused)


def _is_ledger_row(kind: Any, message_id: Any, text: Any) -> bool:
    if kind not in get_args(RowKind) or not isinstance(message_id, str) or not isinstance(text, str):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _ids_between(connection: Any, low: int | None, high: int | None) -> Sequence[int]:
    """Return the possible row ids between the last ones that were read from both ends."""
    if low is None:
        return ()
    if high is None:
        try:
            [(high,)] = connection.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'spool'")
        except (sqlite3.Error, ValueError):
            return ()
    return range(low + 1, min(int(high or 0), low + _MAX_IDS))


def sibling(path: Path, suffix: str) -> Path:
    """Return the path of a file that SQLite puts beside another, such as ``-wal``."""
    return path.with_name(path.name + suffix)
