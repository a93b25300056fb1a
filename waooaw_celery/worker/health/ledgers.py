"""Keeps a worker from messages that another ledger records: what it did with them would never be in there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from waooaw_celery.errors import ConfigurationError, StoreUnavailable
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import ENVELOPE_HEADER, LEDGER_FIELD
from waooaw_celery.messages.wording import ledger_name
from waooaw_celery.worker.health.clock import clock_of

logger = get_logger(__name__)

#: What to change, for every refusal.
_REMEDY = "set the same waooaw_database_url (or WAOOAW_DATABASE_URL) for all processes, and restart this worker"


def check_ledgers(app: Any, node: str) -> None:
    """Check that no other worker of this worker's agents writes to a ledger that this one does not write to.

    A worker with a ledger may start beside workers without one: that is how a ledger is switched on.

    Args:
        app: the application, an AgentApp, after the worker has selected its queues.
        node: the node name of this worker, whose former declaration does not count.

    Raises:
        ConfigurationError: there is such a worker; the text names it.
    """
    agents = app.consumed_agents()
    if not agents:
        return
    try:
        records = {record.name: record for record in app.registry.everywhere()}
    except StoreUnavailable as error:  # each message says which ledger has it
        logger.info("the workers' ledgers could not be compared: %s", error, extra={"action": "ledgers_unchecked"})
        return
    for name in agents:
        for worker, ledger in records[name].ledgers.items() if name in records else ():
            if worker != node and ledger not in (None, app.ledger_id):
                raise ConfigurationError(
                    f"this worker writes to {ledger_name(app.ledger_id)}, and another worker of agent {name!r}, "
                    f"{worker}, writes to {ledger_name(ledger)}: {_REMEDY}"
                )


def reason_to_refuse(app: Any, headers: Mapping[str, Any]) -> str | None:
    """Return why this worker must not handle a message, or None.

    Args:
        app: the application, an AgentApp.
        headers: the headers of the message.
    """
    envelope = headers.get(ENVELOPE_HEADER)
    if not isinstance(envelope, Mapping):
        return None  # another program has sent it, and keeps no record of it
    theirs, own = envelope.get(LEDGER_FIELD), app.ledger_id
    if theirs == own:
        return None
    if theirs is None:
        if app.components.has_redis:
            return None  # it is recorded here, and in the receipt of its sender
        return (
            "its sender has no ledger, and keeps its receipt in a Redis that this worker does not know: set "
            f"waooaw_redis_url (or WAOOAW_REDIS_URL) to that Redis, or {_REMEDY}"
        )
    return f"{ledger_name(theirs)} records it, and this worker writes to {ledger_name(own)}: {_REMEDY}"


def is_expired(app: Any, headers: Mapping[str, Any]) -> bool:
    """Return whether a message has expired.

    Args:
        app: the application, an AgentApp.
        headers: its headers, which were checked.
    """
    expires_at = parse_datetime(headers.get("expires"), UTC)
    return expires_at is not None and expires_at <= clock_of(app).now()
