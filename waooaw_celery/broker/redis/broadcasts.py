"""Broadcasts of one channel, such as Celery's remote control and its events: messages of Redis's pub/sub."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis
from redis.exceptions import NoPermissionError

from waooaw_celery.broker.incoming.guard import check_message
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.redis_refusals import remedy

logger = get_logger(__name__)


class Broadcasts(redis.Channel):
    """The part of a channel that subscribes to broadcasts, and delivers them. Broadcasts are stored nowhere.

    A topic without a wildcard is subscribed to by its name: an ACL compares a pattern letter by letter, so a user
    with ``&lab:*`` may not subscribe to the pattern ``lab:/0.celery.pidbox``.
    """

    caps: Any
    _next_delivery_tag: Any

    def _subscribe(self) -> None:
        topics = [topic for queue in self.active_fanout_queues for topic in self._get_subscribe_topics(queue)]
        if not topics:
            return
        client = self.subclient
        if client.connection._sock is None:
            client.connection.connect()
        self._in_listen = client.connection
        for topic in topics:  # one by one: a topic that is not permitted must not keep out the others
            (client.psubscribe if _is_pattern(topic) else client.subscribe)(topic)

    def _unsubscribe_from(self, queue: str) -> None:
        client = self.subclient
        if client.connection and client.connection._sock:
            for topic in self._get_subscribe_topics(queue):
                (client.punsubscribe if _is_pattern(topic) else client.unsubscribe)(topic)

    def _receive_one(self, client: Any) -> Any:
        try:
            return super()._receive_one(client)
        except NoPermissionError as error:
            # Without the broadcasts the channel still works; to connect again would end in the same refusal.
            queues = self.active_fanout_queues
            topics = [
                f"{self.global_keyprefix}{each}" for queue in queues for each in self._get_subscribe_topics(queue)
            ]
            logger.error(  # noqa: TRY400 - no traceback needed
                "broadcasts are not received: %s", remedy(error, topics), extra={"action": "broadcast_refused"}
            )
            return None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        try:
            delivery = check_message(message, self.caps)
        except DecodingFailed as error:
            logger.warning(
                "dropped an invalid broadcast to %a: %s", exchange, error, extra={"action": "broadcast_dropped"}
            )
            return False
        delivery["properties"].setdefault("delivery_tag", self._next_delivery_tag())
        return bool(super()._deliver_fanout_message(delivery, exchange))


def _is_pattern(topic: str) -> bool:
    """Return whether a topic has a wildcard, so that Redis takes it for a pattern."""
    return any(sign in topic for sign in "*?[")
