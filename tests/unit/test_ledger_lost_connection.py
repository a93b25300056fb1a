"""Which errors of the ledger's database mean that there was no connection, so that a later attempt may succeed."""

from __future__ import annotations

import sqlite3

import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy.exc import DBAPIError

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import lacks_connection


def failed(driver_error: Exception) -> AuditUnavailable:
    """Return the error of a write that failed with this error of the driver."""
    error = AuditUnavailable("could not write")
    error.__cause__ = DBAPIError("INSERT", {}, driver_error)
    return error


@pytest.mark.parametrize(
    ("driver_error", "is_lost"),
    [
        (psycopg2.OperationalError("could not connect"), True),
        (psycopg2.InterfaceError("connection already closed"), True),
        # What psycopg2 raises when the server closes the connection within a text of several statements.
        (psycopg2.DatabaseError("server closed the connection unexpectedly"), True),
        (psycopg2.DataError("value out of range"), False),
        (psycopg2.IntegrityError("duplicate key"), False),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.DatabaseError("file is not a database"), False),
    ],
)
def test_a_lost_connection_is_told_from_a_refusal(driver_error: Exception, is_lost: bool) -> None:
    """Rows of a lost connection are written later; refused rows never are."""
    assert lacks_connection(failed(driver_error)) is is_lost
