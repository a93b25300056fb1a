"""Puts entries into the database: over a line of its own where that is possible, else in a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.write.pipeline import PipelinedConnection
from waooaw_celery.ledger.write.statements import (
    WRITE,
    StatementOutcome,
    outcome,
    parameters,
    rehearse,
    settle_strays,
    withdraw,
    write,
    write_refusals,
)

#: What is done, for an error's sentence.
_WHAT = "write to the ledger"

#: What became of it, and the strays and withdrawals about whose messages nothing is known yet.
WriteOutcome: TypeAlias = tuple[StatementOutcome, list[LedgerRow]]


class RowInserter:
    """Writes entries, all or none. For one user at a time.

    Every method raises AuditUnavailable when the database does not answer or refuses.

    Args:
        database: where the ledger's tables are.
        asks: whether DELIVERED, when it is written at once, is news: then a message that has ended is told.
    """

    def __init__(self, database: Database, asks: bool = False) -> None:
        self._database, self._asks = database, asks
        # Other drivers than psycopg2 write in a transaction, as SQLite does.
        self._line = PipelinedConnection(database) if database.url.drivername == "postgresql+psycopg2" else None

    def write(self, entries: Sequence[LedgerRow], *, late: bool = False) -> WriteOutcome:
        """Write entries; ``late``: what they tell is no news any more."""
        if self.send(entries, late=late):
            return self.answer(entries)
        messages, facts, strays, refusals, withdrawals = _sorted(entries)
        try:
            with self._database.begin(_WHAT) as connection:
                settled, unknown = settle_strays(connection, strays) if strays else ([], [])
                write_refusals(connection, refusals)
                unknown += withdraw(connection, withdrawals) if withdrawals else []
                return write(connection, messages, facts + settled, asks=self._asks and not late), unknown
        except AuditUnavailable as error:
            # The answer that was lost may be that to the commit; SQLite has no answers to lose.
            error.uncertain = self._database.is_postgresql
            raise
        except (ValueError, OverflowError) as error:
            raise _unwritable(error) from error

    def send(self, entries: Sequence[LedgerRow], *, late: bool = False) -> bool:
        """Send entries on their way and return True, or False when they can only be written at once."""
        messages, facts, *others = _sorted(entries)
        if self._line is None or any(others):
            return False
        try:
            self._line.send(_WHAT, WRITE, parameters(messages, facts, self._asks and not late))
        except (ValueError, OverflowError) as error:
            raise _unwritable(error) from error
        return True

    def answer(self, _: Sequence[LedgerRow] = ()) -> WriteOutcome:
        """Wait for the answer to what was sent."""
        line: Any = self._line
        return outcome(line.answer(_WHAT)), []

    def rehearse(self) -> None:
        """Find out whether the database would take rows: to answer a question is not enough."""
        with self._database.begin(_WHAT) as connection:
            rehearse(connection)

    def close(self) -> None:
        """Close the line; the next entries open another."""
        if self._line is not None:
            self._line.close()


def is_permanent_error(error: AuditUnavailable) -> bool:
    """Whether the database will say the same of these rows at any time, or cannot even be told of them."""
    cause: Any = error.__cause__
    known: Any = getattr(cause, "orig", cause)
    names = {kind.__name__ for kind in type(known).__mro__}
    # The last two are what a driver raises for a text or a number that it cannot hand over.
    return bool(names & {"DataError", "IntegrityError", "ValueError", "OverflowError"})


def _unwritable(error: Exception) -> AuditUnavailable:
    return AuditUnavailable(f"could not {_WHAT}: {error}")


def _sorted(entries: Iterable[LedgerRow]) -> tuple[list[LedgerRow], ...]:
    """Return the messages, the facts, the strays, the refusals and the withdrawals among entries.

    In one order everywhere, so that two processes never wait for each other's rows in a circle.
    """
    kinds: dict[str, list[LedgerRow]] = {"message": [], "fact": [], "stray": [], "refusal": [], "withdrawal": []}
    for entry in sorted(entries, key=lambda entry: entry.message_id):
        kinds[entry.kind].append(entry)
    return tuple(kinds.values())
