"""Puts entries into the database: over a line of its own where that is possible, else in a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from waooaw_celery.audit.engine import Database
from waooaw_celery.audit.entries import Entry
from waooaw_celery.audit.line import Line
from waooaw_celery.audit.statements import (
    WRITE,
    lists,
    outcome,
    rehearse,
    settle_strays,
    write,
    write_refusals,
)
from waooaw_celery.errors import AuditUnavailable

#: What is done, for an error's sentence.
_WHAT = "write to the ledger"

#: The ids of the messages that are new, and the strays about whose messages nothing is known yet.
Written: TypeAlias = tuple[set[str], list[Entry]]


class Pen:
    """Writes entries, all or none. For one user at a time.

    Every method raises AuditUnavailable when the database does not answer or refuses.

    Args:
        database: where the ledger's tables are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Other drivers than psycopg2 write in a transaction, as SQLite does.
        self._line = Line(database) if database.url.drivername == "postgresql+psycopg2" else None

    def write(self, entries: Sequence[Entry]) -> Written:
        """Write entries."""
        if self.send(entries):
            return self.answer(entries)
        messages, facts, strays, refusals = _sorted(entries)
        try:
            with self._database.begin(_WHAT) as connection:
                settled, unknown = settle_strays(connection, strays) if strays else ([], [])
                write_refusals(connection, refusals)
                return write(connection, messages, facts + settled)[0], unknown
        except (ValueError, OverflowError) as error:
            raise _unwritable(error) from error

    def send(self, entries: Sequence[Entry]) -> bool:
        """Send entries on their way and return True, or False when they can only be written at once."""
        messages, facts, strays, refusals = _sorted(entries)
        if self._line is None or strays or refusals:
            return False
        try:
            self._line.send(_WHAT, WRITE, lists(messages, facts))
        except (ValueError, OverflowError) as error:
            raise _unwritable(error) from error
        return True

    def answer(self, _: Sequence[Entry] = ()) -> Written:
        """Wait for the answer to what was sent."""
        line: Any = self._line
        return outcome(line.answer(_WHAT))[0], []

    def rehearse(self) -> None:
        """Find out whether the database would take rows: to answer a question is not enough."""
        with self._database.begin(_WHAT) as connection:
            rehearse(connection)

    def close(self) -> None:
        """Close the line; the next entries open another."""
        if self._line is not None:
            self._line.close()


def never_taken(error: AuditUnavailable) -> bool:
    """Whether the database will say the same of these rows at any time, or cannot even be told of them."""
    cause: Any = error.__cause__
    known: Any = getattr(cause, "orig", cause)
    names = {kind.__name__ for kind in type(known).__mro__}
    # The last two are what a driver raises for a text or a number that it cannot hand over.
    return bool(names & {"DataError", "IntegrityError", "ValueError", "OverflowError"})


def _unwritable(error: Exception) -> AuditUnavailable:
    return AuditUnavailable(f"could not {_WHAT}: {error}")


def _sorted(entries: Iterable[Entry]) -> tuple[list[Entry], list[Entry], list[Entry], list[Entry]]:
    """Return the messages, the facts, the strays and the refusals among entries.

    In one order everywhere, so that two processes never wait for each other's rows in a circle.
    """
    kinds: dict[str, list[Entry]] = {"message": [], "fact": [], "stray": [], "refusal": []}
    for entry in sorted(entries, key=lambda entry: entry.message_id):
        kinds[entry.kind].append(entry)
    return kinds["message"], kinds["fact"], kinds["stray"], kinds["refusal"]
