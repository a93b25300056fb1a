"""A transaction of Django's ORM, in which the ledger records messages over Django's own connection.

Nothing here imports Django. SQLAlchemy writes the statements, and Django's cursor executes them. SQLAlchemy itself
must not have the connection: it would change how the connection converts JSON, and would commit or close it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite

from waooaw_celery.errors import ConfigurationError

#: By Django's name for a kind of database, the dialect in which statements for Django's cursor are written.
_DIALECTS: Mapping[str, Callable[[], Dialect]] = {
    "postgresql": lambda: postgresql.dialect(paramstyle="pyformat"),  # type: ignore[no-untyped-call]
    "sqlite": lambda: sqlite.dialect(paramstyle="format"),
}


def is_django_connection(session: Any) -> bool:
    """Return whether this is a connection of Django, such as ``django.db.connection``."""
    return all(hasattr(session, name) for name in ("vendor", "in_atomic_block", "on_commit", "cursor", "alias"))


class DjangoTransaction:
    """The transaction that is open on a connection of Django.

    Args:
        wrapper: the connection, such as ``django.db.connection``.

    Raises:
        ConfigurationError: no transaction is open, or the ledger does not support this kind of database.
    """

    def __init__(self, wrapper: Any) -> None:
        if wrapper.vendor not in _DIALECTS:
            raise ConfigurationError(
                f"Django's database {wrapper.alias!r} is {wrapper.vendor}: the ledger supports only PostgreSQL "
                "and SQLite. Send with transaction.on_commit instead"
            )
        if not wrapper.in_atomic_block:
            raise ConfigurationError(
                f"no transaction is open on Django's database {wrapper.alias!r}: send within transaction.atomic() "
                "or without session="
            )
        self._wrapper = wrapper
        self._connection = DjangoConnection(wrapper, _DIALECTS[wrapper.vendor]())

    def connection(self) -> DjangoConnection:
        """Return the connection, as a Session of SQLAlchemy does."""
        return self._connection

    def on_commit(self, call: Callable[[], object]) -> None:
        """Call a function after the commit, unless the transaction or the savepoint of now is rolled back."""
        self._wrapper.on_commit(call)


class DjangoConnection:
    """What the ledger's statements need of a connection of SQLAlchemy, over Django's cursor.

    Args:
        wrapper: Django's connection.
        dialect: the dialect of its database.
    """

    def __init__(self, wrapper: Any, dialect: Dialect) -> None:
        self._wrapper, self.dialect = wrapper, dialect

    def __hash__(self) -> int:
        return id(self._wrapper)

    @property
    def engine(self) -> Any:
        """What is known to reach one database: Django's connection."""
        return self._wrapper

    def execute(self, statement: Any, rows: Sequence[Mapping[str, Any]] | None = None) -> _Result:
        """Execute a statement of SQLAlchemy, once or for each of several rows."""
        result = _Result((), 0)
        for row in rows or [{}]:
            compiled = statement.values(row) if row else statement
            result = self._execute_compiled(compiled.compile(dialect=self.dialect))
        return result

    def exec_driver_sql(self, sql: str, parameters: Mapping[str, Any] | None = None) -> _Result:
        """Execute SQL as Django's cursor takes it."""
        return self._run(sql, parameters)

    def scalar(self, statement: Any) -> Any:
        """Return the first value of the first row, or None."""
        return next((row[0] for row in self.execute(statement).all()), None)

    def scalars(self, statement: Any) -> list[Any]:
        """Return the first value of each row."""
        return [row[0] for row in self.execute(statement).all()]

    def _execute_compiled(self, compiled: Any) -> _Result:
        values = compiled.construct_params()
        for bind, name in compiled.bind_names.items():
            process = bind.type.dialect_impl(self.dialect).bind_processor(self.dialect)
            if process is not None:
                values[name] = process(values[name])
        if compiled.positional:
            return self._run(str(compiled), [values[name] for name in compiled.positiontup])
        return self._run(str(compiled), values)

    def _run(self, sql: str, parameters: Any) -> _Result:
        with self._wrapper.cursor() as cursor:
            cursor.execute(sql, parameters)
            return _Result(cursor.fetchall() if cursor.description else (), cursor.rowcount)


class _Result:
    """The rows of a statement, and how many it changed."""

    def __init__(self, rows: Iterable[Any], rowcount: int) -> None:
        self._rows, self.rowcount = list(rows), rowcount

    def __iter__(self) -> Any:
        return iter(self._rows)

    def all(self) -> list[Any]:
        """Return all rows."""
        return self._rows

    def one(self) -> Any:
        """Return the only row."""
        [row] = self._rows
        return row

    def one_or_none(self) -> Any:
        """Return the only row, or None."""
        return self.one() if self._rows else None

    def scalar_one(self) -> Any:
        """Return the only value."""
        [[value]] = self._rows
        return value
