"""The large payloads of a system: which contain a text that is to be erased, and which nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import DecodingFailed, PayloadAltered, PayloadMissing
from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.objects.objects import LedgerObjects
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import counted
from waooaw_celery.store.objects.object_store import Purged

logger = get_logger(__name__)


def purge_payloads(app: AgentApp) -> Purged:
    """Remove the large payloads that no message needs any more, and those that never got a message.

    Args:
        app: the application.

    Returns:
        What was removed; nothing where the application has no store of large payloads.

    Raises:
        ReferenceStoreUnavailable: the store does not answer.
    """
    if not app.components.has_large_payloads:
        return Purged()
    purged = app.components.large_payloads.purge()
    if purged.objects or purged.orphans:
        logger.info(
            "removed %s of messages that are gone, and %d that never had a message",
            counted(purged.objects, "large payload"),
            purged.orphans,
            extra={"action": "payloads_purged", **purged._asdict()},
        )
    return purged


def messages_with(app: AgentApp, is_selected: Callable[[JSON], bool]) -> tuple[set[str], int]:
    """Return the messages whose large payloads are selected, and how many payloads could not be read.

    Args:
        app: an application with a ledger.
        is_selected: returns whether the arguments of a task are selected.

    Raises:
        ReferenceStoreUnavailable: the store does not answer.
    """
    store = app.components.large_payloads.store
    if not isinstance(store, LedgerObjects):
        return set(), 0
    found: set[str] = set()
    decided: dict[str, bool] = {}
    unreadable = 0
    for key, message_id in store.used():
        if key not in decided:
            reference = _reference_of(app, message_id)
            if reference is None:  # it is not recorded yet, or was erased
                continue
            try:
                decided[key] = is_selected(list(app.components.large_payloads.load(reference)))
            except (PayloadMissing, PayloadAltered, DecodingFailed):
                decided[key] = False
                unreadable += 1
        if decided[key]:
            found.add(message_id)
    return found, unreadable


def _reference_of(app: AgentApp, message_id: str) -> Reference | None:
    with app.database.begin("read a reference") as connection:
        options = connection.scalar(select(MessageRow.options).where(MessageRow.message_id == message_id))
    form = (options or {}).get("reference")
    return None if form is None else Reference.of_form(form)
