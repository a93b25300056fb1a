"""Kombu's Redis channel, with an atomic claim in place of its pop: nothing is lost between the two.

Keys and messages are Kombu's, so that its own consumers and producers work beside it on the same queues.
"""

from __future__ import annotations

import logging
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
from waooaw_celery.broker.incoming.guard import check_message
from waooaw_celery.broker.redis.acks import Acknowledgements, forget
from waooaw_celery.broker.redis.batch import RedisPublishBatch
from waooaw_celery.broker.redis.claim import Claimer
from waooaw_celery.broker.redis.consume import deliver_claimed, read_claim
from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.redis.leases.keeper import LeaseKeeper
from waooaw_celery.broker.redis.leases.restore import put_back_message, put_back_unread
from waooaw_celery.broker.redis.leases.worker_requests import is_ending, running_messages
from waooaw_celery.broker.redis.qos import QoS
from waooaw_celery.broker.redis.scripts import PUBLISH
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps

logger = logging.getLogger(__name__)

#: Options of the transport besides Kombu's, each explained where its default is.
_OPTIONS = (
    "foreign_visibility_timeout",
    "delivery_limit",
    "dead_letters_max",
)


class Channel(redis.Channel):
    """The channel to a server whose address is known."""

    QoS = QoS
    Message = Message

    #: Bodies that are text travel as text: they are read by Kombu's own consumers all the same.
    body_encoding = None

    #: Seconds after which a message that a plain Kombu consumer holds, which renews nothing, is taken from it.
    foreign_visibility_timeout = 3600.0
    #: How often a message is taken back from consumers that died, before it is a dead letter.
    delivery_limit = DELIVERY_LIMIT

    #: How many dead letters are kept, about: the oldest make room for new ones.
    dead_letters_max = 100_000

    from_transport_options: tuple[str, ...] = (*redis.Channel.from_transport_options, *_OPTIONS)

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.acks = Acknowledgements(self)
        self.claimer = Claimer(self, self.acks)
        self.claimed = self.claimer.claimed
        self.unacknowledged_queues: set[str] = set()
        self._publisher = f"{uuid4().hex}-"
        self._lease: LeaseKeeper | None = None
        self._client_of_scripts: Any = None
        self._client_of_commands: Any = None
        super().__init__(connection, **kwargs)
        if not self.ack_emulation:
            raise ValueError(
                "ack_emulation=False would lose messages: leave it out of broker_transport_options, "
                "or use Kombu's own transport (waooaw_redis_transport='kombu')"
            )
        self.keys = Keys(self)
        #: What is accepted.
        self.caps = Caps.of(connection.client.transport_options)

    # --- publishing

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Return a body as it travels, and how: only bytes need to be made text."""
        if isinstance(body, str):
            return body, None
        encoded: tuple[Any, str | None] = super().encode_body(body, encoding or "base64")
        return encoded

    def create_publish_batch(self, max_size: int) -> RedisPublishBatch:
        """Return a batch of a producer."""
        return RedisPublishBatch(self, max_size)

    def _next_delivery_tag(self) -> str:
        # Only Kombu's own consumers look at it: unique is enough, and random would cost a system call each.
        return f"{self._publisher}{next(self._delivery_tags)}"

    def _put(self, queue: str, message: Any, _publish_batch: Any = None, **kwargs: Any) -> None:
        list_, bell = self.keys.place(queue, message)
        text = to_text(message)
        if _publish_batch is None:
            try:
                PUBLISH(self.scripts_client, [list_, bell], [text])
            except RedisTimeoutError as error:
                # Kombu would publish again and again, and each may be carried out when the server goes on.
                raise OperationalError(f"whether the message is in {queue!r} is not known: {error}") from error
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
            claim = self.claimer.fetch(queue)
            self._maybe_update_queues_expire(self._create_client(), queue)
            if claim is None:
                raise Empty
            delivery = read_claim(self, claim)
            if delivery is not None:
                return delivery

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        """Deliver what was broadcast to whoever listens: remote control. Nothing of it is kept anywhere."""
        try:
            delivery = check_message(message, self.caps)
        except DecodingFailed as error:
            logger.warning(
                "a broadcast to %a was dropped: %s", exchange, error, extra={"action": "broadcast_dropped"}
            )
            return False
        delivery["properties"].setdefault("delivery_tag", self._next_delivery_tag())
        return bool(super()._deliver_fanout_message(delivery, exchange))

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return the next message of a queue, or None."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None:
            if no_ack:
                self.acknowledge(message.delivery_tag)
            else:
                self._keep_leases()
        return message

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Begin to consume a queue."""
        if no_ack:
            self.unacknowledged_queues.add(queue)
        result = super().basic_consume(queue, no_ack, *args, **kwargs)
        self.claimer.found_nothing = False
        if queue in self.active_queues:
            self._keep_leases()  # also without acknowledgements: what is claimed ahead waits here
        return result

    def _keep_leases(self) -> None:
        if self._lease is None:
            self._lease = LeaseKeeper(self)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        result = super()._basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self.unacknowledged_queues.discard(queue)
            if not self.active_queues:
                self.claimer.settle()
            self._put_back_claimed(queue)
        return result

    # --- letting go

    def acknowledge(self, tag: str) -> None:
        """Forget a message: with the next claim when there will be one, else at once."""
        self.acks.add(tag)
        self.tell_of_room()
        if self.closed or not self.connection.in_event_loop or not self.active_queues:
            self.acks.flush()

    def acknowledge_adopted(self, tag: str) -> None:
        """Forget a message that was still being handled when this channel lost its connection."""
        if self._lease is not None and self._lease.let_go(tag):
            forget(self, self._lease.client, tag)

    def let_go_adopted(self, tag: str) -> None:
        """Let the lease of such a message end, after which it is handed out again."""
        if self._lease is not None:
            self._lease.let_go(tag)

    def tell_of_room(self) -> None:
        """Wake whoever waits until the channel may claim again."""
        if not self.closed:
            self.connection.cycle.room.set()

    def flush_waiting_acks(self) -> None:
        """Forget what was handled, unless the claim that is about to go takes it along."""
        if self.acks and (self.claimer.waits_for_bell or not self._in_poll):
            self.acks.flush()

    def _put_back_claimed(self, queue: str | None = None) -> None:
        """Put back what was claimed and not delivered yet, of one queue or of all."""
        for claim in reversed(list(self.claimed)):
            if queue in (None, claim.queue):
                put_back_unread(self, claim)
                self.claimed.remove(claim)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        put_back_message(self, message, front=not leftmost)

    # --- connections

    @property
    def scripts_client(self) -> Any:
        """A client with a connection of its own, whose keys are taken as they are."""
        if self._client_of_scripts is None:
            self._client_of_scripts = Redis(connection_pool=self.pool, single_connection_client=True)
        return self._client_of_scripts

    def _get_pool(self, asynchronous: bool = False) -> Any:
        if self.connection is None:  # Kombu's would raise an AttributeError, which nobody takes for a lost line
            raise RedisConnectionError("the channel is closed: its connection was lost")
        return super()._get_pool(asynchronous=asynchronous)

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._client_of_commands is None:
            self._client_of_commands = super()._create_client()
        return self._client_of_commands

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self.scripts_client.delete(self.keys.bell(queue))

    def close(self) -> None:
        """Put back what is held, and close."""
        if self.closed:
            super().close()
            return
        self._closing = True
        try:
            self._let_go()
        except (RedisError, OSError) as error:
            # Their leases end, and then they are handed out again.
            logger.warning("a channel was closed without its server: %s", error, extra={"action": "channel_cut"})
        self._in_poll = None
        lease = self._lease
        if lease is not None and not is_ending():
            # What its handlers are at would be handled twice if it were put back.
            kept = self.qos.hand_on(running_messages(self.qos.held()))
            if kept:
                lease.adopt(kept)
                lease = None
        super().close()
        if lease is not None:
            lease.close()

    def _let_go(self) -> None:
        """Put back what nobody has seen, and say what was handled.

        Whoever first uses a line that was cut finds that out, and the next one gets another: so each of the two
        lines of a channel may fail once. A server that does not answer is not asked again.
        """
        for cut in range(3):
            try:
                self.claimer.settle()
                self._put_back_claimed()
                self.acks.flush(also_on_their_way=True)
            except RedisConnectionError:
                if cut == 2:
                    raise
            else:
                return

    def _disconnect_pools(self) -> None:
        self._client_of_scripts = self._client_of_commands = None
        super()._disconnect_pools()

    def _after_fork(self) -> None:
        self._lease = None  # its thread is the parent's
        super()._after_fork()


class SentinelChannel(Channel, redis.SentinelChannel):
    """The channel to whichever server a sentinel names."""

    from_transport_options: tuple[str, ...] = (*redis.SentinelChannel.from_transport_options, *_OPTIONS)
