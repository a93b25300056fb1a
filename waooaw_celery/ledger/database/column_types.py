"""Column types that behave the same in PostgreSQL and in SQLite."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Text, TypeDecorator

from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.messages.validation import restored


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite has no time zones and stores UTC without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a value to UTC before it is written."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return a value that was read as an aware UTC datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EncodedJson(str):
    """JSON text as ``payload_text`` writes it, for SQLite: it is stored without being decoded."""

    __slots__ = ()


class JsonText(TypeDecorator[Any]):
    """A JSON value that is stored exactly as it was sent.

    SQLite stores it as text. In a column of type JSON, SQLite would convert a payload that is a number, and a
    number beyond 64 bits would lose its last digits.
    """

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the column type for a database: TEXT for SQLite, JSON for PostgreSQL."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else JSON())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Serialize a value for SQLite."""
        if isinstance(value, EncodedJson):
            return str(value)
        return payload_text(value) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Return a stored value as it was sent."""
        return restored(json.loads(value) if dialect.name == "sqlite" and value is not None else value)


class PayloadText(TypeDecorator[Any]):
    """A JSON value that is stored as its text, the same in PostgreSQL and in SQLite. None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Serialize a value."""
        return None if value is None else payload_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Return a stored value as it was written."""
        return None if value is None else decoded(value)


def decoded(text: str) -> Any:
    """Return the value that ``payload_text`` has written as a text."""
    return restored(json.loads(text))
