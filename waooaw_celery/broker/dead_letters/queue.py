"""The dead-letter queue: lists dead letters, retries them as new messages, or discards them.

The receipts of their messages record each retry and discard.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from waooaw_celery.broker.dead_letters.amqp import AmqpDeadLetterStorage
from waooaw_celery.broker.dead_letters.dead_letter import (
    DeadLetter,
    DeadLetterContent,
    payload_in,
    read_content,
    with_payload,
)
from waooaw_celery.broker.dead_letters.redis import RedisDeadLetterStorage
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter, DeadLetterStorage
from waooaw_celery.broker.redis.dead_lettering import notify_dead_lettered
from waooaw_celery.errors import InvalidMessage, StoreUnavailable, UnknownDeadLetter, UnknownMessage, WaooawError
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.messages.validation import JSON, LocalTime, tagged

logger = get_logger(__name__)

#: How often a message is retried from the dead letters without ``again=True``. Its copies count together.
MAX_RETRIES = 3
#: Why an id has no dead letter, and why one is not retried.
UNKNOWN = "there is no such dead letter: it was retried, discarded or erased, or newer ones took its place"
ERASED = "its message was erased, and a retry would bring the payload back: discard it with `waooaw dead discard`"
#: The default maximum of dead letters that one call lists or works on.
DEFAULT_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a retry or discard of one dead letter.

    Attributes:
        id: The id of the dead letter.
        message_id: The id of its message; None if it cannot be read.
        new_id: The id of the new message of a retry; None if there is none.
        refused: Why nothing was done, a sentence; None if it was done.
    """

    id: str
    message_id: str | None
    new_id: str | None = None
    refused: str | None = None


class DeadLetterQueue:
    """The dead letters of an application's broker.

    Every method raises BrokerUnavailable if the broker does not answer.

    Args:
        app: The AgentApp.

    Example:
        >>> for dead_letter in app.dead_letters.list(agent="billing", reason="timeout"):
        ...     print(dead_letter.message_id, dead_letter.reason)
        >>> app.dead_letters.retry(app.dead_letters.list(agent="billing"), by="ada")
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        storage: type[DeadLetterStorage] = (
            RedisDeadLetterStorage if app.driver == "redis" else AmqpDeadLetterStorage
        )
        self._storage = storage(app, app.settings.dead_letters_max)

    def add(self, queue: str, reason: str, *raw: bytes) -> None:
        """Store dead letters. When this returns, the broker has them.

        Args:
            queue: The queue that the message came from.
            reason: Why it died, a sentence.
            raw: The bytes of each message, in the form in which messages travel on Redis.
        """
        self._storage.add(queue, reason, *raw)

    def bury(self, queue: str, reason: str, raw: bytes, worker: str | None = None) -> None:
        """Store a dead letter, log it, and record it in the message's receipt.

        Args:
            queue: The queue that the message came from.
            reason: Why it died, a sentence.
            raw: The message's bytes, in the form in which messages travel on Redis.
            worker: The node name of the worker that received it.
        """
        self.add(queue, reason, raw)
        notify_dead_lettered(self, queue, raw, reason, worker)

    def list(
        self,
        *,
        agent: str | None = None,
        queue: str | None = None,
        reason: str | None = None,
        since: datetime | None = None,
        ids: Collection[str] | None = None,
        message_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Sequence[DeadLetter]:
        """Return the dead letters that match all given arguments, the newest first.

        Args:
            agent: The agent that the message was for.
            queue: The queue that it came from.
            reason: A part of the reason; upper and lower case are the same.
            since: The earliest time of death, an aware datetime.
            ids: The ids of the dead letters.
            message_id: The id of the message.
            limit: The maximum to return.

        Raises:
            InvalidMessage: The limit is not a positive integer, or ``since`` has no time zone.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidMessage(f"limit must be a positive number, not {limit!r:.80}")
        if since is not None and since.tzinfo is None:
            raise InvalidMessage("since must be an aware datetime, such as datetime.now(UTC)")
        selected = DeadLetterFilter(
            agent=agent, queue=queue, reason=reason, since=since, ids=ids, message_id=message_id
        )
        return self._storage.list(selected, limit)

    def get(self, id_: str) -> DeadLetter:
        """Return a dead letter.

        Args:
            id_: The id of the dead letter.

        Raises:
            UnknownDeadLetter: There is no dead letter with this id.
        """
        found = self._storage.list(DeadLetterFilter(ids=[id_]), 1)
        if not found:
            raise UnknownDeadLetter(f"there is no dead letter {id_!r:.80}: `waooaw dead list` shows all of them")
        return found[0]

    def retry(
        self,
        dead_letters: Iterable[DeadLetter | str],
        *,
        by: str | None = None,
        again: bool = False,
        edit: Callable[[JSON], JSON] | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Sequence[Outcome]:
        """Send the messages of dead letters again, each as a new message, and remove the dead letters.

        The oldest is sent first. The publisher sends the new message to the same handler, with the same sender,
        payload, type, priority, conversation id, correlation id and time to live. It counts toward its sender's
        rate limit. Its causation id is the old message's id, and the old message's receipt gets the event RESENT.
        Each dead letter becomes at most one new message, also if it is retried twice or by two callers at once.

        Args:
            dead_letters: The dead letters, or their ids.
            by: The name of the caller, for the receipt; None: the setting ``waooaw_sender``.
            again: Whether to retry also messages that were already retried three times.
            edit: Returns the payload of the new message from that of the old one; None: it stays the same.
            on_progress: Called with the number of dead letters done so far, and with that of all.

        Returns:
            An outcome for each. A dead letter that cannot be read or sent stays, and its outcome has the reason.

        Example:
            >>> app.dead_letters.retry([letter], by="ada", edit=lambda payload: {**payload, "currency": "EUR"})
        """
        caller = by or self._default_caller()
        return self._for_each(
            dead_letters, lambda dead_letter: self._retry(dead_letter, caller, again, edit), on_progress
        )

    def discard(
        self,
        dead_letters: Iterable[DeadLetter | str],
        *,
        reason: str,
        by: str | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Sequence[Outcome]:
        """Remove dead letters permanently. The receipts of their messages get the event DISCARDED.

        Args:
            dead_letters: The dead letters, or their ids.
            reason: Why they are discarded, for the receipt.
            by: The name of the caller, for the receipt; None: the setting ``waooaw_sender``.
            on_progress: Called with the number of dead letters done so far, and with that of all.

        Returns:
            An outcome for each.
        """
        caller = by or self._default_caller()
        return self._for_each(
            dead_letters, lambda dead_letter: self._discard(dead_letter, f"by {caller}: {reason}"), on_progress
        )

    def find(self, where: Callable[[DeadLetter], bool]) -> Sequence[DeadLetter]:
        """Return all dead letters that match a condition, the newest first."""
        return self._storage.list(DeadLetterFilter(where=where), sys.maxsize)

    def erase(self, dead_letters: Sequence[DeadLetter]) -> int:
        """Remove dead letters because their messages were erased. Their receipts get the event DISCARDED.

        Returns:
            How many were removed. Fewer than given: another reader had the others.
        """
        for dead_letter in dead_letters:
            self._discard(dead_letter, None)
        return len(self._storage.remove([dead_letter.id for dead_letter in dead_letters]))

    def _default_caller(self) -> str:
        return self._app.settings.sender or "somebody"

    def _for_each(
        self,
        dead_letters: Iterable[DeadLetter | str],
        do: Callable[[DeadLetter], Outcome],
        on_progress: Callable[[int, int | None], None] | None,
    ) -> Sequence[Outcome]:
        """Do something with each dead letter, and remove those for which it succeeded."""
        given = list(dead_letters)
        ids = [each for each in given if isinstance(each, str)]
        found = {each.id: each for each in given if isinstance(each, DeadLetter)}
        if ids:
            found |= {each.id: each for each in self.list(ids=ids, limit=len(ids))}
        outcomes = [
            Outcome(id=escaped(id_), message_id=None, refused=UNKNOWN)
            for id_ in dict.fromkeys(ids)
            if id_ not in found
        ]
        done: list[str] = []
        try:
            for number, dead_letter in enumerate(sorted(found.values(), key=lambda each: each.at), 1):
                outcome = do(dead_letter)
                outcomes.append(outcome)
                if outcome.refused is None:
                    done.append(dead_letter.id)
                if on_progress is not None:
                    on_progress(number, len(found))
        finally:  # also if the store fails half-way: what was sent stays sent
            self._storage.remove(done)
        return outcomes

    def _retry(
        self, dead_letter: DeadLetter, caller: str, again: bool, edit: Callable[[JSON], JSON] | None
    ) -> Outcome:
        try:
            content = read_content(dead_letter, self._app.packer.caps)
            if edit is not None:
                payload = payload_in(content, self._app.components.large_payloads.load)
                content = with_payload(content, edit(payload))
            if content.message.resent >= MAX_RETRIES and not again:
                raise InvalidMessage(
                    f"it was already retried {content.message.resent} times: correct its handler, then use "
                    "--again (again=True)"
                )
            if self._app.receipts.is_erased(content.message.message_id):
                raise InvalidMessage(ERASED)
            new_id = self._send(dead_letter, content, is_edited=edit is not None)
        except StoreUnavailable:
            raise
        except WaooawError as error:
            return Outcome(id=dead_letter.id, message_id=dead_letter.message_id, refused=escaped(str(error)))
        self._app.receipts.note(
            MessageFact(
                message_id=content.message.message_id,
                event=MessageEvent.RESENT,
                message=content.message,
                handler=content.target.handler,
                error=f"as {new_id} by {caller}{', with an edited payload' if edit is not None else ''}",
            )
        )
        logger.info(
            "dead letter %s was retried as message %s, by %a",
            dead_letter.id,
            new_id,
            caller,
            extra={"action": "dead_letter_retried", "message_id": new_id},
        )
        return Outcome(id=dead_letter.id, message_id=dead_letter.message_id, new_id=new_id)

    def _send(self, dead_letter: DeadLetter, content: DeadLetterContent, *, is_edited: bool) -> str:
        """Send the new message of a dead letter, unless it was sent before, and return its id."""
        # The id is computed, so that of two callers who retry one dead letter the second sends nothing.
        edition = f", edited to {_text(content.message.payload)}" if is_edited else ""
        name = f"dead letter {dead_letter.id} of {content.message.message_id}{edition}"
        new_id = str(uuid5(NAMESPACE_OID, name))
        if self._was_sent(new_id):
            return new_id
        message: Message = content.message.evolve(
            message_id=new_id,
            causation_id=content.message.message_id,
            sent_at=LocalTime.read(),
            resent=content.message.resent + 1,
        )
        options = {"message": message, "ignore_result": True, **content.callbacks}
        self._app.send_task(str(content.target), content.args, content.kwargs, **options)
        return new_id

    def _was_sent(self, message_id: str) -> bool:
        try:
            status: MessageStatus = self._app.receipts.get(message_id).status
        except UnknownMessage:
            return False
        return status is not MessageStatus.PENDING

    def _discard(self, dead_letter: DeadLetter, note: str | None) -> Outcome:
        if dead_letter.message_id is not None and dead_letter.agent is not None:
            fact = MessageFact(message_id=dead_letter.message_id, event=MessageEvent.DISCARDED, error=note)
            self._app.receipts.note(fact)
        logger.info(
            "dead letter %s was discarded: %a",
            dead_letter.id,
            note or "by an erasure",
            extra={"action": "dead_letter_discarded"},
        )
        return Outcome(id=dead_letter.id, message_id=dead_letter.message_id)


def _text(payload: JSON) -> str:
    return json.dumps(payload, sort_keys=True, default=tagged)
