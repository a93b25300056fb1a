"""Kombu's Redis channel with an atomic claim in place of its pop, so that no message is lost in between.

Keys and messages are Kombu's: its own consumers and producers can use the same queues.
"""

from __future__ import annotations

import threading
from queue import Empty
from typing import Any
from uuid import uuid4

from kombu.exceptions import OperationalError
from kombu.transport import redis
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from waooaw_celery.broker.incoming.delivery import DELIVERY_LIMIT, Message, to_text
from waooaw_celery.broker.redis.acks import Acknowledgements, Batches, Deliveries
from waooaw_celery.broker.redis.batch import RedisPublishBatch
from waooaw_celery.broker.redis.broadcasts import Broadcasts
from waooaw_celery.broker.redis.claim import Claimer
from waooaw_celery.broker.redis.consume import deliver_claimed, read_claim
from waooaw_celery.broker.redis.groups.groups import Groups
from waooaw_celery.broker.redis.groups.sublists import sublists, ungroup
from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.redis.leases.renewal import LeaseRenewer
from waooaw_celery.broker.redis.leases.restore import requeue_delivered, requeue_undelivered
from waooaw_celery.broker.redis.leases.worker_requests import is_ending, running_messages
from waooaw_celery.broker.redis.qos import QoS
from waooaw_celery.broker.redis.scripts import PUBLISH
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.wire.caps import Caps

logger = get_logger(__name__)

#: Transport options in addition to Kombu's. Each is explained at its default.
_OPTIONS = ("foreign_visibility_timeout", "delivery_limit", "dead_letters_max")
#: How often a closing channel tries: each of its two connections may turn out to be lost when it is first used.
_CLOSE_ATTEMPTS = 3


class Channel(Broadcasts):
    """A channel to a Redis server."""

    QoS = QoS
    Message = Message

    #: Text bodies travel as text. Kombu's own consumers can read them.
    body_encoding = None

    #: Seconds after which a message is taken from a plain Kombu consumer, which renews nothing.
    foreign_visibility_timeout = 3600.0
    #: How often a message is redelivered after its consumer died, before it becomes a dead letter.
    delivery_limit = DELIVERY_LIMIT
    #: The approximate maximum of dead letters. The oldest make room for new ones.
    dead_letters_max = 100_000
    #: Records in receipts that claimed messages are delivered; None: claims do not.
    deliveries: Deliveries | None = None
    #: The batches that its consumer collects; None: it collects none.
    batches: Batches | None = None
    #: How its claims group messages by sender and by key; None: they do not.
    groups: Groups | None = None
    #: Share of its claims that begin with the least urgent priority.
    least_urgent_share = 0.0

    from_transport_options: tuple[str, ...] = (*redis.Channel.from_transport_options, *_OPTIONS)

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.acks = Acknowledgements(self)
        self.claimer = Claimer(self, self.acks)
        self.claimed = self.claimer.claimed
        self.no_ack_queues: set[str] = set()
        self._tag_prefix = f"{uuid4().hex}-"
        self._lease_renewer: LeaseRenewer | None = None
        self._scripts_client: Any = None
        self._commands_client: Any = None
        #: The agents whose queues were declared over this channel.
        self.declared_agents: set[str] = set()
        super().__init__(connection, **kwargs)
        if not self.ack_emulation:
            raise ValueError(
                "ack_emulation=False would lose messages: remove it from broker_transport_options, "
                "or use Kombu's own transport (waooaw_redis_transport='kombu')"
            )
        self.keys = Keys(self)
        self.caps = Caps.of(connection.client.transport_options)

    # --- publishing

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Return a body as it travels, and its encoding: text needs none, bytes become base64."""
        if isinstance(body, str):
            return body, None
        encoded: tuple[Any, str | None] = super().encode_body(body, encoding or "base64")
        return encoded

    def create_publish_batch(self, max_size: int) -> RedisPublishBatch:
        """Return a batch for a producer."""
        return RedisPublishBatch(self, max_size)

    def next_delivery_tag(self) -> str:
        """Return a new delivery tag."""
        return f"{self._tag_prefix}{next(self._delivery_tags)}"

    def complete_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        """Put into a prepared message what Kombu adds when it publishes it."""
        self._inplace_augment_message(message, exchange, routing_key)

    def _next_delivery_tag(self) -> str:
        # Only Kombu's own consumers use it. It must be unique; a random one would cost a system call each.
        return self.next_delivery_tag()

    def _put(self, queue: str, message: Any, _publish_batch: Any = None, **kwargs: Any) -> None:
        list_, bell = self.keys.list_and_bell(queue, message)
        text = to_text(message)
        if _publish_batch is None:
            try:
                PUBLISH(self.scripts_client, [list_, bell], [text])
            except RedisTimeoutError as error:
                # Kombu would repeat the publish, and the server may execute each of them later.
                raise OperationalError(
                    f"it is unknown whether the message is in queue {queue!r}: {error}"
                ) from error
            self._maybe_update_queues_expire(self._create_client(), queue)
            return
        _publish_batch.collect(list_, bell, text)
        if queue in self._expires:
            for step in self.priority_steps:
                _publish_batch.add("pexpire", self._q_for_pri(queue, step), self._expires[queue])

    # --- claiming: Kombu's poller calls these where its own channel pops

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = tuple(self._queue_cycle.consume(len(self.active_queues)))
        if queues:
            self.claimer.start(queues, timeout or self.brpop_timeout)

    def _brpop_read(self, **options: Any) -> bool:
        self.claimer.read(**options)
        if not deliver_claimed(self):
            raise Empty
        return True

    def _get(self, queue: str) -> Any:
        while True:
            claim = self.claimer.claim_one(queue)
            self._maybe_update_queues_expire(self._create_client(), queue)
            if claim is None:
                raise Empty
            delivery = read_claim(self, claim)
            if delivery is not None:
                return delivery

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return the next message of a queue, or None."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None:
            if no_ack:
                self.acknowledge(message.delivery_tag)
            else:
                self._start_lease_renewer()
        return message

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Start to consume a queue."""
        if no_ack:
            self.no_ack_queues.add(queue)
        result = super().basic_consume(queue, no_ack, *args, **kwargs)
        self.claimer.last_was_empty = False
        if queue in self.active_queues:
            self._start_lease_renewer()  # also with no_ack: claimed messages wait here for their delivery
        return result

    def _start_lease_renewer(self) -> None:
        if self._lease_renewer is None:
            self._lease_renewer = LeaseRenewer(self)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        result = super()._basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self.no_ack_queues.discard(queue)
            if not self.active_queues:
                self.claimer.finish()
            self._requeue_claimed(queue)
        return result

    # --- acknowledging and requeueing

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message: with the next claim if there will be one, else now."""
        carries = tag in self.acks.carried
        self.acks.add(tag)
        self.notify_capacity()
        if self.closed or not self.connection.in_event_loop or not self.active_queues:
            self.acks.flush()
        elif carries and self.connection.loop_thread != threading.get_ident():
            self.acks.try_to_flush()  # the event loop may sleep, and a caller waits for the result

    def acknowledge_adopted(self, tag: str) -> None:
        """Acknowledge a message whose handler was running when this channel lost its connection."""
        if self._lease_renewer is not None:
            self._lease_renewer.acknowledge(tag)

    def release_adopted(self, tag: str) -> None:
        """Stop renewing the lease of such a message. It is redelivered when the lease ends."""
        if self._lease_renewer is not None:
            self._lease_renewer.release(tag)

    def notify_capacity(self) -> None:
        """Wake a consumer that waits until the channel may claim again."""
        if not self.closed:
            self.connection.cycle.capacity_changed.set()

    def flush_pending_acks(self) -> None:
        """Send the pending acknowledgements, unless a claim that is about to be sent takes them along."""
        if self.acks and (self.claimer.awaits_bell or not self._in_poll):
            self.acks.flush()

    def _requeue_claimed(self, queue: str | None = None) -> None:
        """Put back what was claimed and not delivered yet, of one queue or of all."""
        for claim in reversed(list(self.claimed)):
            if queue in (None, claim.queue):
                requeue_undelivered(self, claim)
                self.claimed.remove(claim)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        requeue_delivered(self, message, front=not leftmost)

    # --- connections

    @property
    def scripts_client(self) -> Any:
        """A client with its own connection, which does not prefix keys."""
        if self._scripts_client is None:
            self._scripts_client = Redis(connection_pool=self.pool, single_connection_client=True)
        return self._scripts_client

    def _get_pool(self, asynchronous: bool = False) -> Any:
        if self.connection is None:  # Kombu would raise AttributeError, which nothing handles as a lost connection
            raise RedisConnectionError("the channel is closed: its connection was lost")
        return super()._get_pool(asynchronous=asynchronous)

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._commands_client is None:
            self._commands_client = super()._create_client()
        return self._commands_client

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        # Kombu's client does not prefix the keys of EXISTS.
        return bool(self.scripts_client.exists(*self.keys.lists((queue,)), self.keys.sublists(queue)))

    def _size(self, queue: str) -> int:
        grouped = map(self.scripts_client.llen, sublists(self.scripts_client, self.keys, queue))
        return int(super()._size(queue)) + int(sum(grouped))

    def _purge(self, queue: str) -> int:
        ungroup(self.scripts_client, self.keys, (queue,))
        purged: int = super()._purge(queue)
        return purged

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        ungroup(self.scripts_client, self.keys, (queue,))
        super()._delete(queue, *args, **kwargs)
        self.scripts_client.delete(self.keys.bell(queue))

    def queue_delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        """Delete a queue. A channel that closes without Redis leaves its temporary queues, like a killed one."""
        try:
            super().queue_delete(queue, *args, **kwargs)
        except (RedisError, OSError) as error:
            # Kombu would stop to close the channel, and Celery would log hundreds of lines about another error.
            if not self._closing:
                raise
            logger.debug("the temporary queue %s was not deleted: %s", queue, error)

    def close(self) -> None:
        """Put back the messages that the channel holds, and close it."""
        if self.closed:
            super().close()
            return
        self._closing = True
        try:
            self._settle_messages()
        except (RedisError, OSError) as error:
            logger.warning(
                "a channel was closed without Redis; messages that no handler runs are redelivered when their "
                "leases end: %s",
                error,
                extra={"action": "channel_lost"},
            )
        self._in_poll = None
        renewer, adopter = self._lease_renewer, None
        if renewer is not None and not is_ending():
            # Messages whose handlers run or have ended would be handled twice if they were put back. Threads of a
            # pool acknowledge meanwhile, so each message is always known to the channel or to the renewer.
            running = running_messages(self.qos.held())
            renewer.adopt(running)
            self.qos.pop_held(running)
            handled = self.acks.take_unsent()
            if running or handled:
                renewer.adopt({}, handled)
                renewer, adopter = None, renewer
        super().close()
        if adopter is not None:
            adopter.adopt({}, self.acks.take_unsent())
        if renewer is not None:
            renewer.close()

    def _settle_messages(self) -> None:
        """Put back what was not delivered, and send the pending acknowledgements.

        A lost connection is noticed when it is next used, and then replaced, so each of the channel's two
        connections may fail once. A server that does not answer in time is not tried again.
        """
        for attempt in range(1, _CLOSE_ATTEMPTS + 1):
            try:
                self.claimer.finish()
                self._requeue_claimed()
                self.acks.flush(include_in_flight=True)
            except RedisConnectionError:
                if attempt == _CLOSE_ATTEMPTS:
                    raise
            else:
                return

    def _disconnect_pools(self) -> None:
        self._scripts_client = self._commands_client = None
        super()._disconnect_pools()

    def _after_fork(self) -> None:
        self._lease_renewer = None  # its thread runs in the parent process only
        super()._after_fork()


class SentinelChannel(Channel, redis.SentinelChannel):
    """A channel to the master that a Redis Sentinel names."""

    from_transport_options: tuple[str, ...] = (*redis.SentinelChannel.from_transport_options, *_OPTIONS)
