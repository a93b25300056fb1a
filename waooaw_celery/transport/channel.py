"""Kombu's Redis channel, with an atomic claim in place of its pop: nothing is lost between the two.

Keys and messages are Kombu's, so that its own consumers and producers work beside it on the same queues.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from queue import Empty
from typing import Any, NamedTuple
from uuid import uuid4

from kombu.transport import redis
from redis import Redis
from redis.exceptions import NoScriptError, RedisError

from waooaw_celery.errors import Unreadable
from waooaw_celery.transport.batch import PublishBatch
from waooaw_celery.transport.guard import Delivery, examine, read
from waooaw_celery.transport.lease import LeaseKeeper
from waooaw_celery.transport.letters import DEAD_KEY, park, tell
from waooaw_celery.transport.qos import QoS
from waooaw_celery.transport.recovery import put_back
from waooaw_celery.transport.scripts import CLAIM, PUBLISH, TOUCH
from waooaw_celery.transport.travel import Claim, Message, mark_redelivered, to_text
from waooaw_celery.wire.caps import Caps

logger = logging.getLogger(__name__)

#: Seconds for which messages that were claimed together are delivered before the event loop has its turn.
SLICE_SECONDS = 0.01

#: Seconds for which a consumer that may hold so many, and holds three quarters of them, lets what it could claim
#: and has acknowledged come together: results of a pool arrive one by one, and each would be a round trip.
WAIT_SECONDS = 0.01
PLENTY = 16
#: Queues and priorities whose keys a channel remembers: there may be as many queues of answers as callers.
MOST_PLACES = 1000
#: Options of the transport besides Kombu's, each explained where its default is.
_OPTIONS = (
    "foreign_visibility_timeout",
    "delivery_limit",
)


class Asked(NamedTuple):
    """What a claim asked for, to understand its answer."""

    window: int
    queues: list[str]
    lists: list[str]
    tags: str
    keys: list[str]
    args: list[Any]


class Channel(redis.Channel):
    """The channel to a server whose address is known."""

    QoS = QoS
    Message = Message

    #: Bodies that are text travel as text: they are read by Kombu's own consumers all the same.
    body_encoding = None
    #: How the tags of leased messages begin: those that Kombu's own consumers note have no such thing.
    TAG_MARK = "lease:"
    #: Messages claimed at once when a consumer sets no bound.
    claim_limit = 500

    #: Seconds after which a message that a plain Kombu consumer holds, which renews nothing, is taken from it.
    foreign_visibility_timeout = 3600.0
    #: How often a message is taken back from consumers that died, before it is a dead letter.
    delivery_limit = 5

    from_transport_options: tuple[str, ...] = (*redis.Channel.from_transport_options, *_OPTIONS)

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.claimed: deque[Claim] = deque()  # not delivered yet, in order
        self._acks: deque[str] = deque()
        self._acks_on_their_way: list[str] = []
        self._unacknowledged_queues: set[str] = set()
        self._in_flight = ""  # what the polling connection was told: "claim", "bell" or nothing
        self._asked: Asked | None = None
        self._last_keys: tuple[tuple[str, ...], list[str], list[str]] = (), [], []
        self._rest = False  # whether the last claim found nothing
        self._known = True  # whether the server knows the script
        self._tag = f"{self.TAG_MARK}{uuid4().hex}:"
        self._places: dict[tuple[str, int], tuple[str, str]] = {}
        self._claims = 0
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
        self._caps = Caps.of(connection.client.transport_options)

    # --- publishing

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Return a body as it travels, and how: only bytes need to be made text."""
        if isinstance(body, str):
            return body, None
        encoded: tuple[Any, str | None] = super().encode_body(body, encoding or "base64")
        return encoded

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return a batch of a producer."""
        return PublishBatch(self, max_size)

    def _next_delivery_tag(self) -> str:
        # Only Kombu's own consumers look at it: unique is enough, and random would cost a system call each.
        return f"{self._publisher}{next(self._delivery_tags)}"

    def _put(self, queue: str, message: Any, _publish_batch: Any = None, **kwargs: Any) -> None:
        list_, bell = self._where(queue, self._get_message_priority(message, reverse=False))
        text = to_text(message)
        if _publish_batch is None:
            PUBLISH(self.scripts_client, [list_, bell], [text])
            self._maybe_update_queues_expire(self._create_client(), queue)
            return
        _publish_batch.collect(list_, bell, text)
        if queue in self._expires:
            for step in self.priority_steps:
                _publish_batch.add("pexpire", self._q_for_pri(queue, step), self._expires[queue])

    # --- claiming: Kombu's poller calls these where its own channel pops

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Tell the polling connection to claim, or, when nothing was there, to wait for a doorbell."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        if self._rest and not self._acks and not self.claimed:
            self._in_flight = "bell"
            command = ["BLPOP", *map(self.bell, queues), timeout or self.brpop_timeout]
        else:
            self._in_flight = "claim"
            self._acks_on_their_way += self._take_acks()
            self._asked = self._ask(queues, max(self.qos.window(), 0))
            args = [*self._asked.args, *self._acks_on_their_way]
            command = CLAIM.command(self._asked.keys, args, known=self._known)
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:
        """Read the answer, and deliver what was claimed."""
        self._read_answer(**options)
        if not self.deliver_claimed():
            raise Empty
        return True

    def _read_answer(self, **options: Any) -> None:
        was, self._in_flight = self._in_flight, ""
        try:
            answer = self.client.parse_response(self.client.connection, "EVALSHA", **options)
        except NoScriptError:
            self._known = False  # it is given the text next time
            return
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if was == "bell":
            self._rest = False
            return
        self._known = True
        self._acks_on_their_way.clear()
        if self._asked is not None:
            self._rest = not answer and self._asked.window > 0
            self._take_in(answer, self._asked)
            if time.monotonic() - self._brpop_sent_at > self.visibility_timeout / 2:
                self._forget_lost()

    def _ask(self, queues: list[str], window: int) -> Asked:
        self._claims += 1
        lists, keys = self._keys_of(tuple(queues))
        tags = f"{self._tag}{self._claims}."
        return Asked(window, queues, lists, tags, keys, [window, tags, len(queues), *queues])

    def _keys_of(self, queues: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Return the lists of queues, and all keys of a claim, which are the same each time."""
        if self._last_keys[0] != queues:
            lists = [self.key(self._q_for_pri(queue, step)) for step in self.priority_steps for queue in queues]
            keys = [*self.noted_keys, self.key(DEAD_KEY), *map(self.bell, queues), *lists]
            self._last_keys = queues, lists, keys
        return self._last_keys[1], self._last_keys[2]

    def _take_in(self, answer: list[Any], asked: Asked) -> None:
        """Note what was claimed, in order; tell of what was parked."""
        number = 0
        for position, raw in zip(answer[::2], answer[1::2], strict=True):
            list_ = abs(position) - 1
            queue = asked.queues[list_ % len(asked.queues)]
            if position > 0:
                number += 1
                self.claimed.append(Claim(f"{asked.tags}{number}", queue, asked.lists[list_], raw))
            else:
                tell(self, queue, raw, "it is no message")

    def _forget_lost(self) -> None:
        """Let go of what is another's by now: an answer was read so late that nobody renewed what is in it."""
        for claim in list(self.claimed):
            if not TOUCH(self.scripts_client, [self.key(self.unacked_index_key)], [claim.tag]):
                self.claimed.remove(claim)

    def deliver_claimed(self) -> bool:
        """Deliver what was claimed; return whether there was anything.

        In an event loop, for a moment: it has other things to do too. Whoever waits for a message gets one.
        """
        ends_at = time.monotonic() + (SLICE_SECONDS if self.connection.in_event_loop else 0.0)
        delivered = False
        while self.claimed:
            claim = self.claimed[0]
            try:
                self._deliver_one(claim)
            finally:
                # Only now, or a lease could be without anybody who renews it. (A consumer that was cancelled
                # meanwhile has put it back.)
                if self.claimed and self.claimed[0] is claim:
                    self.claimed.popleft()
            delivered = True
            if time.monotonic() >= ends_at:
                break
        return delivered

    def _deliver_one(self, claim: Claim) -> None:
        if claim.queue not in self.connection._callbacks:  # cancelled while it was on its way
            self._put_back_unread(claim)
            return
        delivery = self._read(claim)
        if delivery is None:
            return
        self._queue_cycle.rotate(claim.queue)
        if claim.queue in self._unacknowledged_queues:
            self.acknowledge(claim.tag)
        self.connection._deliver(delivery, claim.queue)

    def _read(self, claim: Claim) -> Delivery | None:
        """Return what was claimed, or make a dead letter of it and return None."""
        try:
            delivery = read(claim.raw, self._caps)
        except Unreadable as error:
            park(self, self.scripts_client, claim.tag, claim.queue, claim.raw, str(error))
            return None
        delivery["properties"]["delivery_tag"] = claim.tag
        delivery.claim = claim
        return delivery

    def _get(self, queue: str) -> Any:
        while True:
            asked = self._ask([queue], 1)
            before = len(self.claimed)
            self._take_in(CLAIM(self.scripts_client, asked.keys, asked.args), asked)
            self._maybe_update_queues_expire(self._create_client(), queue)
            if len(self.claimed) == before:
                raise Empty
            delivery = self._read(self.claimed.pop())
            if delivery is not None:
                return delivery

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        """Deliver what was broadcast to whoever listens: remote control. Nothing of it is kept anywhere."""
        try:
            delivery = examine(message, self._caps)
        except Unreadable as error:
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
            self._unacknowledged_queues.add(queue)
        result = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._rest = False
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
            self._unacknowledged_queues.discard(queue)
            if not self.active_queues:
                self._settle()
            self._put_back_claimed(queue)
        return result

    # --- letting go

    def acknowledge(self, tag: str) -> None:
        """Forget a message: with the next claim when there will be one, else at once."""
        self._acks.append(tag)
        self.tell_of_room()
        if self.closed or not self.connection.in_event_loop or not self.active_queues:
            self.flush_acks()

    def acknowledge_adopted(self, tag: str) -> None:
        """Forget a message that was still being handled when this channel lost its connection."""
        if self._lease is not None and self._lease.let_go(tag):
            CLAIM(self._lease.client, [*self.noted_keys, self.key(DEAD_KEY)], [0, "", 0, tag])

    def let_go_adopted(self, tag: str) -> None:
        """Let the lease of such a message end, after which it is handed out again."""
        if self._lease is not None:
            self._lease.let_go(tag)

    def tell_of_room(self) -> None:
        """Wake whoever waits until the channel may claim again."""
        if not self.closed:
            self.connection.cycle.room.set()

    def flush_acks(self) -> None:
        """Forget what was handled, now."""
        tags = self._take_acks()
        if not tags:
            return
        try:
            CLAIM(self.scripts_client, [*self.noted_keys, self.key(DEAD_KEY)], [0, "", 0, *tags])
        except BaseException:
            self._acks.extendleft(reversed(tags))
            raise

    def has_plenty(self) -> bool:
        """Whether this consumer has enough to do for a moment, and need not say anything yet."""
        most = self.qos.prefetch_count
        return bool(
            most >= PLENTY
            and not self._in_poll
            and not self._rest
            and not self.claimed
            and self.connection.in_event_loop
            and self.active_queues
            and self.qos.window() * 4 < most
            and time.monotonic() - (self._brpop_sent_at or 0.0) < WAIT_SECONDS
        )

    def flush_waiting_acks(self) -> None:
        """Forget what was handled, unless the claim that is about to go takes it along."""
        if self._acks and (self._in_flight == "bell" or not self._in_poll):
            self.flush_acks()

    def _take_acks(self) -> list[str]:
        tags = []
        while self._acks:
            tags.append(self._acks.popleft())
        return tags

    def put_back(self, message: Any, *, front: bool) -> None:
        """Put a message that was delivered back into its queue, marked as redelivered."""
        said = message._raw
        claim: Claim | None = getattr(said, "claim", None)
        if claim is None:  # a broadcast, which was in no queue
            return
        mark_redelivered(said)
        put_back(self, self.scripts_client, claim.tag, [(claim.queue, claim.list)], to_text(said), front=front)

    def _put_back_unread(self, claim: Claim) -> None:
        """Put a message that nobody saw back to the front of its queue, as it was."""
        put_back(self, self.scripts_client, claim.tag, [(claim.queue, claim.list)], "", front=True)

    def _put_back_claimed(self, queue: str | None = None) -> None:
        """Put back what was claimed and not delivered yet, of one queue or of all."""
        for claim in reversed(list(self.claimed)):
            if queue in (None, claim.queue):
                self._put_back_unread(claim)
                self.claimed.remove(claim)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.put_back(message, front=not leftmost)

    # --- connections

    def key(self, name: str) -> str:
        """Return a key as the server knows it."""
        return f"{self.global_keyprefix}{name}"

    def bell(self, queue: str) -> str:
        """Return the key of a queue's doorbell: a list of at most one element."""
        return self.key(f"{queue}{self.sep}bell")

    @property
    def noted_keys(self) -> tuple[str, str]:
        """The keys of the unacknowledged messages, and of the moments in which they were claimed."""
        return self.key(self.unacked_key), self.key(self.unacked_index_key)

    def list_of(self, queue: str, message: Any) -> str:
        """Return the key of the list of a queue into which a message goes."""
        return self._where(queue, self._get_message_priority(message, reverse=False))[0]

    def _where(self, queue: str, priority: int) -> tuple[str, str]:
        """Return the keys of the list of a queue for a priority, and of the queue's doorbell."""
        known = self._places.get((queue, priority))
        if known is None:
            known = self.key(self._q_for_pri(queue, priority)), self.bell(queue)
            if len(self._places) < MOST_PLACES:
                self._places[queue, priority] = known
        return known

    @property
    def scripts_client(self) -> Any:
        """A client with a connection of its own, whose keys are taken as they are."""
        if self._client_of_scripts is None:
            self._client_of_scripts = Redis(connection_pool=self.pool, single_connection_client=True)
        return self._client_of_scripts

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._client_of_commands is None:
            self._client_of_commands = super()._create_client()
        return self._client_of_commands

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self.scripts_client.delete(self.bell(queue))

    def _settle(self) -> None:
        """Read what the polling connection was told to claim, so that nothing waits in it for nobody."""
        if not self._in_poll:
            return
        if self._in_flight == "bell":
            self.client.connection.disconnect()
            self._in_flight, self._in_poll = "", None
            return
        self._read_answer()

    def close(self) -> None:
        """Put back what is held, and close."""
        if self.closed:
            super().close()
            return
        self._closing = True
        try:
            self._settle()
            self._put_back_claimed()
            self._acks.extend(self._acks_on_their_way)
            self._acks_on_their_way.clear()
            self.flush_acks()
        except (RedisError, OSError) as error:
            # Their leases end, and then they are handed out again.
            logger.warning("a channel was closed without its server: %s", error, extra={"action": "channel_cut"})
        self._in_poll = None
        lease = self._lease
        if lease is not None and self.connection.in_event_loop and _worker_goes_on():
            # What its handlers are at would be handled twice if it were put back.
            lease.adopt(self.qos.hand_on())
            lease = None
        super().close()
        if lease is not None:
            lease.close()

    def _disconnect_pools(self) -> None:
        self._client_of_scripts = self._client_of_commands = None
        super()._disconnect_pools()

    def _after_fork(self) -> None:
        self._lease = None  # its thread is the parent's
        super()._after_fork()


class SentinelChannel(Channel, redis.SentinelChannel):
    """The channel to whichever server a sentinel names."""

    from_transport_options: tuple[str, ...] = (*redis.SentinelChannel.from_transport_options, *_OPTIONS)


def _worker_goes_on() -> bool:
    """Whether the Celery worker that closes a channel will open another, since it only lost its connection."""
    from celery.worker import state

    return not any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))
