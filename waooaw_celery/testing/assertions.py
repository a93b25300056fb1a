"""What the ledger of a test has recorded, and assertions about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import MessageStatus, MessageType

#: Which messages are meant: a function of the record, or a part of the payload.
Where: TypeAlias = Callable[[AuditRecord], bool] | Mapping[str, Any] | None

#: What no test has sent: the record of an event or of an answer.
_NOT_SENT = (MessageType.EVENT, MessageType.RESPONSE)
#: The most messages that the text of a failed assertion shows.
_SHOWN = 20


class Recorded:
    """The records of one test.

    Args:
        app: the application.
        run: handles all messages.
    """

    def __init__(self, app: Any, run: Callable[[], None]) -> None:
        self._app, self._run = app, run

    def sent(self, *, where: Where = None, **wanted: Any) -> Sequence[AuditRecord]:
        """Return the records of the messages and requests that were sent, oldest first.

        Events and the answers to requests are not among them.

        Args:
            where: as for ``assert_sent``.
            wanted: as for ``assert_sent``.
        """
        return [
            record
            for record in self._records(wanted)
            if record.receipt.message_type not in _NOT_SENT and _matches(record, where)
        ]

    def handled(self, *, where: Where = None, **wanted: Any) -> Sequence[AuditRecord]:
        """Return the records of the messages and requests that were handled, oldest first."""
        return [
            record
            for record in self._records({**wanted, "status": MessageStatus.HANDLED})
            if _matches(record, where)
        ]

    def published(self, topic: str | None = None, *, where: Where = None, **wanted: Any) -> Sequence[AuditRecord]:
        """Return the records of the events that were published, oldest first.

        Args:
            topic: the topic, or a pattern such as ``order.*``; None: all.
            where: as for ``assert_sent``.
            wanted: as for ``assert_sent``.
        """
        found = self._records({**wanted, "topic": topic, "message_type": MessageType.EVENT})
        events = [record for record in found if record.receipt.to_agent == ""]
        return [record for record in events if _matches(record, where)]

    def assert_sent(
        self, *, to: str | None = None, where: Where = None, times: int | None = None, **wanted: Any
    ) -> AuditRecord:
        """Assert that a message or request was sent.

        Args:
            to: the recipient.
            where: a function of the record that returns whether it is meant, or a part of the payload, such as
                ``{"id": 7}``.
            times: how often it was sent; None: at least once.
            wanted: other filters of ``MessageAuditTrail.query``, such as ``from_agent`` and ``priority``.

        Returns:
            The record of the first one.

        Raises:
            AssertionError: it was not sent, or not so often; the text shows what was sent.
        """
        found = self.sent(where=where, **_with(wanted, to))
        return self._check("sent", found, times, to, where, wanted, self.sent())

    def assert_handled(
        self, *, to: str | None = None, where: Where = None, times: int | None = None, **wanted: Any
    ) -> AuditRecord:
        """Run the agents, and assert that a message or request was handled; as ``assert_sent``."""
        self._run()
        found = self.handled(where=where, **_with(wanted, to))
        return self._check("handled", found, times, to, where, wanted, self.sent())

    def assert_published(
        self, topic: str, *, where: Where = None, times: int | None = None, **wanted: Any
    ) -> AuditRecord:
        """Assert that an event was published; as ``assert_sent``.

        Args:
            topic: the topic, or a pattern such as ``order.*``.
            where, times, wanted: as for ``assert_sent``.
        """
        found = self.published(topic, where=where, **wanted)
        return self._check("published", found, times, topic, where, wanted, self.published())

    def _records(self, wanted: Mapping[str, Any]) -> list[AuditRecord]:
        return list(reversed(list(_all(MessageAuditTrail(self._app.ledger), _with(wanted)))))

    def _check(
        self,
        what: str,
        found: Sequence[AuditRecord],
        times: int | None,
        to: str | None,
        where: Where,
        wanted: Mapping[str, Any],
        all_records: Sequence[AuditRecord],
    ) -> AuditRecord:
        if found and times in (None, len(found)):
            return found[0]
        given = {"to": to, "where": where, **wanted}
        filters = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        expected = "at least one" if times is None else str(times)
        lines = [f"  {_shown(record)}" for record in all_records[-_SHOWN:]]
        hidden = len(all_records) - len(lines)
        shown = "\n".join([f"  … and {hidden} earlier ones"] * (hidden > 0) + lines) or "  nothing"
        raise AssertionError(
            f"{expected} message with {filters or 'no filter'} should have been {what}, and {len(found)} were. "
            f"In this test:\n{shown}"
        )


def _with(wanted: Mapping[str, Any], to: str | None = None) -> dict[str, Any]:
    """Return filters of a query; ``to`` and ``from_`` may stand for ``to_agent`` and ``from_agent``."""
    filters = dict(wanted)
    to = to or filters.pop("to", None)
    if to is not None:
        filters["to_agent"] = to
    return filters


def _all(trail: MessageAuditTrail, filters: Mapping[str, Any]) -> Iterator[AuditRecord]:
    after = None
    while True:
        page = trail.query(**filters, limit=1000, after=after)
        yield from page.records
        if page.after is None:
            return
        after = page.after


def _matches(record: AuditRecord, where: Where) -> bool:
    if where is None:
        return True
    if callable(where):
        return bool(where(record))
    payload = record.payload
    return isinstance(payload, Mapping) and all(
        name in payload and payload[name] == value for name, value in where.items()
    )


def _shown(record: AuditRecord) -> str:
    return f"{record.receipt.summary}: {record.payload!r:.100}"
