"""The desk for dead letters: listed, retried as new messages, discarded; and noted in their messages' receipts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from waooaw_celery.broker.dead_letters.amqp import AmqpDeadLetterStorage
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter, DeadLetterContent, printable, read_content
from waooaw_celery.broker.dead_letters.redis import RedisDeadLetterStorage
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter, DeadLetterStorage
from waooaw_celery.broker.redis.dead_lettering import notify_dead_lettered
from waooaw_celery.errors import InvalidMessage, StoreUnavailable, UnknownDeadLetter, UnknownMessage, WaooawError
from waooaw_celery.messages.message import Message, MessageStatus
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.messages.validation import LocalTime

logger = logging.getLogger(__name__)

#: How often a message is sent again from the dead letters, counted along its copies, unless somebody insists.
MAX_RETRIES = 3
#: Letters that one call lists or works on, unless it says otherwise.
DEFAULT_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a letter that was to be retried or discarded.

    Attributes:
        id: of the letter.
        message_id: of its message; None where it cannot be read.
        new_id: of the message that was sent in its place; None when none was.
        refused: why nothing was done, a sentence; None when it was done.
    """

    id: str
    message_id: str | None
    new_id: str | None = None
    refused: str | None = None


class DeadLetterQueue:
    """The dead letters of an application's broker.

    Every method raises BrokerUnavailable when the broker does not answer.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        kind: type[DeadLetterStorage] = RedisDeadLetterStorage if app.driver == "redis" else AmqpDeadLetterStorage
        self._store = kind(app, app.settings.dead_letters_max)

    def add(self, queue: str, reason: str, raw: bytes) -> None:
        """Keep what died; when this returns, the broker has it.

        Args:
            queue: from which the message came.
            reason: why it died, a sentence.
            raw: the message's bytes, in the form in which Kombu's messages travel on Redis.
        """
        self._store.add(queue, reason, raw)

    def bury(self, queue: str, reason: str, raw: bytes, worker: str | None = None) -> None:
        """Keep what died, and tell log and receipt of it.

        Args:
            queue: from which the message came.
            reason: why it died, a sentence.
            raw: the message's bytes.
            worker: node name of the worker that met it.
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
        limit: int = DEFAULT_LIMIT,
    ) -> Sequence[DeadLetter]:
        """Return the letters that fit all that is said, the newest first.

        Args:
            agent: to this agent.
            queue: from this queue.
            reason: whose reason contains this, in any case.
            since: that died at this moment or later; aware.
            ids: these letters.
            limit: how many at most.

        Raises:
            InvalidMessage: the limit is no positive number, or the moment has no time zone.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidMessage(f"limit must be a positive number, not {limit!r:.80}")
        if since is not None and since.tzinfo is None:
            raise InvalidMessage("since must be an aware datetime, such as datetime.now(UTC)")
        choice = DeadLetterFilter(agent=agent, queue=queue, reason=reason, since=since, ids=ids)
        return self._store.list(choice, limit)

    def get(self, id_: str) -> DeadLetter:
        """Return a letter.

        Raises:
            UnknownDeadLetter: there is none with this id.
        """
        found = self._store.list(DeadLetterFilter(ids=[id_]), 1)
        if not found:
            raise UnknownDeadLetter(
                f"there is no dead letter {id_!r:.80}: `waooaw dead list` shows those that are there"
            )
        return found[0]

    def retry(
        self, letters: Iterable[DeadLetter | str], *, by: str | None = None, again: bool = False
    ) -> Sequence[Outcome]:
        """Send what letters say once more, each as a new message, and remove them; the oldest first.

        The new message goes through the door to the same handler: from the same sender, with the same payload,
        type, priority, conversation and correlation, and as much time as the old one had. Its cause is the old
        message, whose receipt gets the fact RESENT. It counts for its sender's rate limit. Of one letter there is
        never a second new message: retried twice, or by two at once, it is sent once.

        Args:
            letters: which, or their ids.
            by: who asks; None: the setting ``waooaw_sender``.
            again: also those whose message was sent again three times already.

        Returns:
            What became of each; one that cannot be read or sent stays, with the reason.
        """
        who = by or self._operator()
        return self._each(letters, lambda letter: self._retry(letter, who, again))

    def discard(
        self, letters: Iterable[DeadLetter | str], *, reason: str, by: str | None = None
    ) -> Sequence[Outcome]:
        """Remove letters for good; the receipts of their messages get the fact DISCARDED.

        Args:
            letters: which, or their ids.
            reason: why.
            by: who asks; None: the setting ``waooaw_sender``.

        Returns:
            What became of each.
        """
        who = by or self._operator()
        return self._each(letters, lambda letter: self._discard(letter, f"by {who}: {reason}"))

    def _operator(self) -> str:
        return self._app.settings.sender or "somebody"

    def _each(self, letters: Iterable[DeadLetter | str], do: Any) -> Sequence[Outcome]:
        """Do something with letters, and remove those with which it was done."""
        chosen = list(letters)
        ids = [letter for letter in chosen if isinstance(letter, str)]
        there = {letter.id: letter for letter in chosen if isinstance(letter, DeadLetter)}
        if ids:
            there |= {letter.id: letter for letter in self.list(ids=ids, limit=len(ids))}
        outcomes = [
            Outcome(id=printable(id_), message_id=None, refused="there is no such letter")
            for id_ in dict.fromkeys(ids)
            if id_ not in there
        ]
        done: list[str] = []
        try:
            for letter in sorted(there.values(), key=lambda letter: letter.at):
                outcome = do(letter)
                outcomes.append(outcome)
                if outcome.refused is None:
                    done.append(letter.id)
        finally:  # a store that fails half-way does not undo what was sent
            self._store.remove(done)
        return outcomes

    def _retry(self, letter: DeadLetter, who: str, again: bool) -> Outcome:
        try:
            said = read_content(letter, self._app.packer.caps)
            if said.message.resent >= MAX_RETRIES and not again:
                raise InvalidMessage(
                    f"it was sent again {said.message.resent} times already: mend its handler, then insist "
                    "(--again, or again=True)"
                )
            new_id = self._send(letter, said)
        except StoreUnavailable:
            raise
        except WaooawError as error:
            return Outcome(id=letter.id, message_id=letter.message_id, refused=printable(str(error)))
        self._app.receipts.note(
            MessageFact(
                message_id=said.message.message_id,
                event=MessageEvent.RESENT,
                message=said.message,
                handler=said.target.handler,
                error=f"as {new_id} by {who}",
            )
        )
        logger.info(
            "dead letter %s is sent again as message %s, by %a",
            letter.id,
            new_id,
            who,
            extra={"action": "letter_retried", "message_id": new_id},
        )
        return Outcome(id=letter.id, message_id=letter.message_id, new_id=new_id)

    def _send(self, letter: DeadLetter, said: DeadLetterContent) -> str:
        """Send the new message of a letter, unless that was done before, and return its id."""
        # The same each time: of two who retry one letter, the second sends nothing.
        new_id = str(uuid5(NAMESPACE_OID, f"dead letter {letter.id} of {said.message.message_id}"))
        if self._was_sent(new_id):
            return new_id
        message: Message = said.message.evolve(
            message_id=new_id,
            causation_id=said.message.message_id,
            sent_at=LocalTime.read(),
            resent=said.message.resent + 1,
        )
        self._app.send_task(
            str(said.target), said.args, said.kwargs, message=message, ignore_result=True, **said.after
        )
        return new_id

    def _was_sent(self, message_id: str) -> bool:
        try:
            status: MessageStatus = self._app.receipts.get(message_id).status
        except UnknownMessage:
            return False
        return status is not MessageStatus.PENDING

    def _discard(self, letter: DeadLetter, error: str) -> Outcome:
        if letter.message_id is not None and letter.agent is not None:
            fact = MessageFact(message_id=letter.message_id, event=MessageEvent.DISCARDED, error=error)
            self._app.receipts.note(fact)
        logger.info("dead letter %s is discarded %a", letter.id, error, extra={"action": "letter_discarded"})
        return Outcome(id=letter.id, message_id=letter.message_id)
