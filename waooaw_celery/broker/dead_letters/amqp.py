"""Dead letters on RabbitMQ: a durable queue, each letter one JSON document.

Who lists them takes all of them on one channel, acknowledges none, and closes it: they go back to where they were.
Meanwhile another who looks finds fewer of them, or none.
"""

from __future__ import annotations

import json
import logging
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

from kombu import Exchange, Queue

from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter, DeadLetterStorage
from waooaw_celery.broker.redis.dead_lettering import DEAD_KEY

logger = logging.getLogger(__name__)

#: Seconds until the broker must have confirmed a letter.
CONFIRM_SECONDS = 5.0
_PERSISTENT = 2
#: How often, and after how many seconds each, letters are looked for that are to be removed.
LOOKS, LOOK_SECONDS = 3, 0.5


class AmqpDeadLetterStorage(DeadLetterStorage):
    """The queue ``waooaw.dead``."""

    def __init__(self, app: Any, most: int) -> None:
        super().__init__(app, most)
        self._warned = False

    def add(self, queue: str, reason: str, raw: bytes) -> None:
        id_ = uuid4().hex
        letter = {
            "id": id_,
            "queue": queue,
            "reason": reason,
            "at": self._app.reference_clock.now().isoformat(),
            **_said(raw),
        }
        body = json.dumps(letter).encode()

        def publish(connection: Any) -> None:
            self._declare(connection)
            with connection.channel() as channel:
                message = channel.prepare_message(
                    body,
                    content_type="application/json",
                    content_encoding="utf-8",
                    headers={},
                    properties={"delivery_mode": _PERSISTENT, "message_id": id_},
                )
                if connection.transport.driver_type == "amqp":
                    way = {"mandatory": True, "confirm_timeout": CONFIRM_SECONDS, "timeout": CONFIRM_SECONDS}
                    channel.basic_publish_confirm(message, exchange="", routing_key=DEAD_KEY, **way)
                else:
                    channel.basic_publish(message, exchange="", routing_key=DEAD_KEY)

        self._with("keep a dead letter", publish)

    def list(self, choice: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        def look(connection: Any) -> list[DeadLetter]:
            newest: deque[DeadLetter] = deque(maxlen=limit)
            wanted = None if choice.ids is None else len(set(choice.ids))
            with connection.channel() as channel:
                for letter, _ in self._all(connection, channel):
                    if choice.fits(letter):
                        newest.append(letter)
                        if len(newest) == wanted:
                            break
            return list(reversed(newest))

        return self._with("read the dead letters", look)

    def remove(self, ids: Collection[str]) -> set[str]:
        removed: set[str] = set()

        def remove(connection: Any) -> None:
            with connection.channel() as channel:
                for letter, tag in self._all(connection, channel):
                    if letter.id in ids:
                        channel.basic_ack(tag)
                        removed.add(letter.id)
                        if len(removed) == len(set(ids)):
                            return

        for look in range(LOOKS if ids else 0):
            if look:  # another who looks holds some of them for a moment
                time.sleep(LOOK_SECONDS)
            self._with("remove dead letters", remove)
            if len(removed) == len(set(ids)):
                break
        return removed

    def _all(self, connection: Any, channel: Any) -> Iterator[tuple[DeadLetter, Any]]:
        """Give every letter that is there now, the oldest first, with the tag under which it can be removed."""
        self._declare(connection)
        # What comes meanwhile is newer, and what went back meanwhile was seen.
        for _ in range(channel.queue_declare(DEAD_KEY, passive=True).message_count):
            message = channel.basic_get(DEAD_KEY, no_ack=False)
            if message is None:
                return
            letter = _letter(message)
            if letter is not None:
                yield letter, message.delivery_tag

    def _declare(self, connection: Any) -> None:
        queue = Queue(DEAD_KEY, Exchange(""), routing_key=DEAD_KEY, durable=True, max_length=self._most)
        try:
            with connection.channel() as channel:
                queue(channel).declare()
        except connection.channel_errors as error:
            # It is there, with another bound: it keeps that one, since changing it would lose the letters.
            with connection.channel() as channel:
                channel.queue_declare(DEAD_KEY, passive=True)
            if not self._warned:
                self._warned = True
                text = "the queue %s keeps the bound with which it was made, and not waooaw_dead_letters_max: %s"
                logger.warning(text, DEAD_KEY, error, extra={"action": "letters_bound_kept"})


def _said(raw: bytes) -> dict[str, str]:
    with suppress(UnicodeDecodeError):
        return {"text": raw.decode()}
    return {"base64": b64encode(raw).decode()}


def _letter(message: Any) -> DeadLetter | None:
    """Return what a message of the queue says, or None when somebody else put it there."""
    body = message.body if isinstance(message.body, str | bytes) else bytes(message.body or b"")
    try:
        said = json.loads(body)
        raw = said["text"].encode() if "text" in said else b64decode(said["base64"])
        at = datetime.fromisoformat(said["at"])
        return DeadLetter.of(str(said["id"]), str(said["queue"]), str(said["reason"]), at, raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning(
            "something in the queue %s is no dead letter: %a", DEAD_KEY, error, extra={"action": "no_letter"}
        )
        return None
