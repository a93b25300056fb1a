"""What the argument ``session`` of a send may be."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.transactions.django import DjangoTransaction, is_django_connection


def as_transaction(session: Any) -> Session | DjangoTransaction:
    """Return what a caller has given as its transaction.

    Args:
        session: a Session of SQLAlchemy, or a connection of Django.

    Raises:
        ConfigurationError: it is neither, or Django has no transaction.
    """
    if isinstance(session, Session):
        return session
    if is_django_connection(session):
        return DjangoTransaction(session)
    raise ConfigurationError(
        f"session must be a SQLAlchemy Session or a connection of Django, not {session!r:.80}; with an "
        "AsyncSession: await session.run_sync(lambda session: bus.send(message, session=session))"
    )
