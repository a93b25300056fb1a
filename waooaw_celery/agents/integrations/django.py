"""Helpers for Django: send a message when a transaction commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)


def outbox(using: str | None = None) -> Any:
    """Return what ``session=`` takes to record a message in the open transaction of a database of Django.

    The database must be that of the ledger (``waooaw_database_url``). Then the message is sent if, and only if,
    the transaction commits, also if the process is killed just after it.

    Args:
        using: Django's name of the database; None: ``default``.

    Example:
        >>> with transaction.atomic():
        ...     order.save()
        ...     agent.send("shipping", {"order": order.id}, session=outbox())
    """
    from django.db import transaction

    return transaction.get_connection(using)


def send_on_commit(send: Callable[[], object], using: str | None = None) -> None:
    """Send after the open transaction commits, or at once if none is open. For a database without a ledger.

    A process that is killed between the commit and the send loses the message: ``outbox`` does not. An error of
    the send is logged and not raised, because the transaction is committed.

    Args:
        send: sends the message.
        using: Django's name of the database; None: ``default``.

    Example:
        >>> send_on_commit(lambda: agent.send("shipping", {"order": order.id}))
    """
    from django.db import transaction

    def send_now() -> None:
        try:
            send()
        except WaooawError as error:
            logger.error(  # noqa: TRY400 - the sentence says what failed
                "a message could not be sent after the commit: %s", error, extra={"action": "on_commit_not_sent"}
            )

    transaction.on_commit(send_now, using)
