"""A ledger with its spool, without an application, and messages for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from waooaw_celery import Message
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.settings import AuditMode

DAYS_90 = RetentionPolicy.DAYS_90


@contextmanager
def open_ledger(url: str, folder: Path, mode: AuditMode = AuditMode.BATCHED) -> Iterator[Ledger]:
    """Open a ledger whose spool is in a folder, and close it after the block."""
    with closing(Ledger(Database(database_url(url)), DAYS_90, mode, str(folder))) as ledger:
        yield ledger


def new_message() -> Message:
    """Return a message with a retention, as the publisher completes it."""
    return Message(from_agent="boss", to_agent="worker-1", retention=DAYS_90)
