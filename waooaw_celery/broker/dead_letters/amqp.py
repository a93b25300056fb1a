"""Dead letters on RabbitMQ: a durable queue in which each message is one dead letter, a JSON document.

To list them, one channel gets all messages, acknowledges none, and closes: they return to their places. Meanwhile
another reader would find fewer dead letters, or none. So readers take turns: a reader declares an exclusive queue,
which RabbitMQ refuses to all other connections, and deletes when the connection of its reader ends.
"""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

from amqp.exceptions import ResourceLocked
from kombu import Exchange, Queue

from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter, DeadLetterStorage
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY
from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds within which the broker must confirm a dead letter.
CONFIRM_SECONDS = 5.0
#: The exclusive queue that the present reader has.
READER_KEY = f"{DEAD_LETTERS_KEY}.reader"
#: Seconds for which a reader waits for its turn, and the seconds between two attempts to get it from the broker.
TURN_SECONDS, TURN_PAUSE_SECONDS = 20.0, 0.05
_PERSISTENT = 2
_STILL_READ = (
    f"other processes read the dead letters for more than {TURN_SECONDS:.0f} s, and RabbitMQ gives them to one "
    "reader at a time: try again"
)


class AmqpDeadLetterStorage(DeadLetterStorage):
    """The dead letters in the queue ``waooaw.dead``."""

    def __init__(self, app: Any, max_count: int) -> None:
        super().__init__(app, max_count)
        self._warned = False
        self._turn = threading.Lock()

    def add(self, queue: str, reason: str, *raw: bytes) -> None:
        at = self._app.reference_clock.now().isoformat()
        documents = [
            {"id": uuid4().hex, "queue": queue, "reason": reason, "at": at, **_encode(each)} for each in raw
        ]

        def publish(connection: Any) -> None:
            self._declare(connection)
            with connection.channel() as channel:
                if len(documents) > 1 and connection.transport.driver_type == "amqp":
                    _publish_together(channel, documents)
                else:
                    for document in documents:
                        _publish(connection, channel, document)

        self._with_connection("store a dead letter", publish)

    def list(self, selected: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        def read(connection: Any) -> list[DeadLetter]:
            newest: deque[DeadLetter] = deque(maxlen=limit)
            wanted = None if selected.ids is None else len(set(selected.ids))
            with self._in_turn(connection), connection.channel() as channel:
                for dead_letter, _ in self._get_all(connection, channel):
                    if selected.matches(dead_letter):
                        newest.append(dead_letter)
                        if len(newest) == wanted:
                            break
            return list(reversed(newest))

        return self._with_connection("read the dead letters", read)

    def remove(self, ids: Collection[str]) -> set[str]:
        removed: set[str] = set()

        def remove(connection: Any) -> None:
            with self._in_turn(connection), connection.channel() as channel:
                for dead_letter, tag in self._get_all(connection, channel):
                    if dead_letter.id in ids:
                        channel.basic_ack(tag)
                        removed.add(dead_letter.id)
                        if len(removed) == len(set(ids)):
                            return

        if ids:
            self._with_connection("remove dead letters", remove)
        return removed

    @contextmanager
    def _in_turn(self, connection: Any) -> Iterator[None]:
        """Wait until no other thread, and no other process, reads the dead letters.

        Raises:
            BrokerUnavailable: The others did not end in time.
        """
        deadline = time.monotonic() + TURN_SECONDS
        # Threads of one process wait here: an attempt at the broker costs a channel.
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise BrokerUnavailable(_STILL_READ)
        try:
            while not _declare_reader(connection):
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(_STILL_READ)
                time.sleep(TURN_PAUSE_SECONDS)
            try:
                yield
            finally:
                with connection.channel() as channel:
                    channel.queue_delete(READER_KEY)
        finally:
            self._turn.release()

    def _get_all(self, connection: Any, channel: Any) -> Iterator[tuple[DeadLetter, Any]]:
        """Yield the dead letters that exist now, the oldest first, each with its delivery tag."""
        self._declare(connection)
        # The count excludes dead letters that arrive meanwhile.
        for _ in range(channel.queue_declare(DEAD_LETTERS_KEY, passive=True).message_count):
            message = channel.basic_get(DEAD_LETTERS_KEY, no_ack=False)
            if message is None:
                return
            dead_letter = _parse(message)
            if dead_letter is not None:
                yield dead_letter, message.delivery_tag

    def _declare(self, connection: Any) -> None:
        queue = Queue(
            DEAD_LETTERS_KEY, Exchange(""), routing_key=DEAD_LETTERS_KEY, durable=True, max_length=self._max_count
        )
        try:
            with connection.channel() as channel:
                queue(channel).declare()
        except connection.channel_errors as error:
            # The queue exists with another limit. To change the limit would lose its dead letters.
            with connection.channel() as channel:
                channel.queue_declare(DEAD_LETTERS_KEY, passive=True)
            if not self._warned:
                self._warned = True
                logger.warning(
                    "the queue %s keeps the limit that it was created with, not waooaw_dead_letters_max: %s",
                    DEAD_LETTERS_KEY,
                    error,
                    extra={"action": "dead_letter_limit_kept"},
                )


def _declare_reader(connection: Any) -> bool:
    """Declare the exclusive queue of the reader, and return whether no other connection has it."""
    channel = connection.channel()
    try:
        channel.queue_declare(READER_KEY, durable=False, exclusive=True, auto_delete=False)
    except ResourceLocked:
        return False
    finally:
        channel.close()
    return True


def _publish(connection: Any, channel: Any, document: dict[str, str]) -> None:
    message = _prepare(channel, document)
    if connection.transport.driver_type == "amqp":
        options = {"mandatory": True, "confirm_timeout": CONFIRM_SECONDS, "timeout": CONFIRM_SECONDS}
        channel.basic_publish_confirm(message, exchange="", routing_key=DEAD_LETTERS_KEY, **options)
    else:
        channel.basic_publish(message, exchange="", routing_key=DEAD_LETTERS_KEY)


def _publish_together(channel: Any, documents: Sequence[dict[str, str]]) -> None:
    """Publish dead letters in a transaction: one round trip for all, and RabbitMQ confirms its commit."""
    channel.tx_select()
    for document in documents:
        # The class's own method: that of the channel waits for a confirmation, which a transaction excludes.
        type(channel).basic_publish(
            channel,
            _prepare(channel, document),
            exchange="",
            routing_key=DEAD_LETTERS_KEY,
            timeout=CONFIRM_SECONDS,
        )
    channel.tx_commit()


def _prepare(channel: Any, document: dict[str, str]) -> Any:
    return channel.prepare_message(
        json.dumps(document).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        headers={},
        properties={"delivery_mode": _PERSISTENT, "message_id": document["id"]},
    )


def _encode(raw: bytes) -> dict[str, str]:
    with suppress(UnicodeDecodeError):
        return {"text": raw.decode()}
    return {"base64": b64encode(raw).decode()}


def _parse(message: Any) -> DeadLetter | None:
    """Return the dead letter in a message of the queue, or None if the message is something else."""
    body = message.body if isinstance(message.body, str | bytes) else bytes(message.body or b"")
    try:
        document = json.loads(body)
        raw = document["text"].encode() if "text" in document else b64decode(document["base64"])
        at = datetime.fromisoformat(document["at"])
        return DeadLetter.of(str(document["id"]), str(document["queue"]), str(document["reason"]), at, raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning(
            "a message in the queue %s is not a dead letter: %a",
            DEAD_LETTERS_KEY,
            error,
            extra={"action": "not_a_dead_letter"},
        )
        return None
