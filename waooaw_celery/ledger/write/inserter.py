"""Inserts rows into the database: over a pipelined connection where possible, otherwise in a transaction."""

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
    parameters,
    parse_outcome,
    resolve_strays,
    try_write,
    withdraw,
    write,
    write_refusals,
)

#: The action in error messages, after "could not".
_ACTION = "write to the ledger"

#: What changed, and the strays and withdrawals whose messages are not known yet.
WriteOutcome: TypeAlias = tuple[StatementOutcome, list[LedgerRow]]


class RowInserter:
    """Inserts rows, all of them or none. Only one thread may use it at a time.

    Every method raises AuditUnavailable if the database does not answer or refuses the rows.

    Args:
        database: the ledger's database.
        detect_duplicates: whether to write DELIVERED as DUPLICATE if the message has ended. It applies to rows
            that are not late.
    """

    def __init__(self, database: Database, detect_duplicates: bool = False) -> None:
        self._database, self._detect_duplicates = database, detect_duplicates
        # SQLite and other PostgreSQL drivers write in a transaction.
        is_psycopg2 = database.url.drivername == "postgresql+psycopg2"
        self._pipeline = PipelinedConnection(database) if is_psycopg2 else None

    def write(self, rows: Sequence[LedgerRow], *, late: bool = False) -> WriteOutcome:
        """Insert rows and wait for the database.

        Args:
            rows: what to insert.
            late: whether the rows were delayed, for example in the spool. Then duplicates are not detected.
        """
        if self.send(rows, late=late):
            return self.receive(rows)
        messages, facts, strays, refusals, withdrawals = _by_kind(rows)
        try:
            with self._database.begin(_ACTION) as connection:
                resolved, unknown = resolve_strays(connection, strays) if strays else ([], [])
                write_refusals(connection, refusals)
                unknown += withdraw(connection, withdrawals) if withdrawals else []
                detect_duplicates = self._detect_duplicates and not late
                return write(connection, messages, facts + resolved, detect_duplicates=detect_duplicates), unknown
        except AuditUnavailable as error:
            # The lost answer may be that to COMMIT. SQLite runs in this process and loses no answer.
            error.uncertain = self._database.is_postgresql
            raise
        except (ValueError, OverflowError) as error:
            raise _not_encodable(error) from error

    def send(self, rows: Sequence[LedgerRow], *, late: bool = False) -> bool:
        """Send rows without waiting for the answer.

        Returns:
            Whether they were sent. If not, call ``write``: these rows need a transaction.
        """
        messages, facts, *others = _by_kind(rows)
        if self._pipeline is None or any(others):
            return False
        try:
            arguments = parameters(messages, facts, self._detect_duplicates and not late)
            self._pipeline.send(_ACTION, WRITE, arguments)
        except (ValueError, OverflowError) as error:
            raise _not_encodable(error) from error
        return True

    def receive(self, _: Sequence[LedgerRow] = ()) -> WriteOutcome:
        """Wait for the answer to ``send``."""
        pipeline: Any = self._pipeline
        return parse_outcome(pipeline.receive(_ACTION)), []

    def try_write(self) -> None:
        """Find out whether the database accepts rows. A database that answers queries may still refuse writes."""
        with self._database.begin(_ACTION) as connection:
            try_write(connection)

    def close(self) -> None:
        """Close the pipelined connection. The next rows open another."""
        if self._pipeline is not None:
            self._pipeline.close()


def is_permanent_error(error: AuditUnavailable) -> bool:
    """Whether these rows would fail at any time: the database refuses them, or the driver cannot encode them."""
    cause: Any = error.__cause__
    original: Any = getattr(cause, "orig", cause)
    names = {kind.__name__ for kind in type(original).__mro__}
    # A driver raises the last two for a text or a number that it cannot encode.
    return bool(names & {"DataError", "IntegrityError", "ValueError", "OverflowError"})


def _not_encodable(error: Exception) -> AuditUnavailable:
    return AuditUnavailable(f"could not {_ACTION}: {error}")


def _by_kind(rows: Iterable[LedgerRow]) -> tuple[list[LedgerRow], ...]:
    """Return the messages, facts, strays, refusals and withdrawals among rows.

    All processes sort the rows by message id, so that they cannot deadlock.
    """
    kinds: dict[str, list[LedgerRow]] = {"message": [], "fact": [], "stray": [], "refusal": [], "withdrawal": []}
    for row in sorted(rows, key=lambda row: row.message_id):
        kinds[row.kind].append(row)
    return tuple(kinds.values())
