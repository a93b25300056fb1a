"""Kombu's Redis channel, with an atomic claim in place of its pop: nothing is lost between the two.

Keys and messages are Kombu's, so that its own consumers and producers work beside it on the same queues.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Iterable
from queue import Empty
from typing import Any, NamedTuple
from uuid import uuid4

from kombu.transport import redis, virtual
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads
from redis import Redis
from redis.exceptions import NoScriptError, RedisError

from waooaw_celery.transport.batch import PublishBatch
from waooaw_celery.transport.guard import Delivery, Limits, Unreadable, read
from waooaw_celery.transport.lease import LeaseKeeper
from waooaw_celery.transport.letters import DEAD_KEY, parked
from waooaw_celery.transport.qos import QoS
from waooaw_celery.transport.scripts import CLAIM, PARK, PUBLISH, RESTORE, TOUCH

logger = logging.getLogger(__name__)

#: How often a message was taken back from a consumer that died; RabbitMQ's name for the same.
DELIVERY_COUNT = "x-delivery-count"
#: Seconds for which messages that were claimed together are delivered before the event loop has its turn.
SLICE_SECONDS = 0.01

#: Options of the transport besides Kombu's, each explained where its default is.
_OPTIONS = (
    "foreign_visibility_timeout",
    "delivery_limit",
    "max_message_bytes",
    "max_expanded_bytes",
    "accept_content_types",
)

_encode = json.JSONEncoder().encode


class Claim(NamedTuple):
    """An item of a queue that this consumer has claimed: what is noted of it, and where it was."""

    tag: str
    queue: str
    list: str
    raw: bytes


class Asked(NamedTuple):
    """What a claim asked for, to understand its answer."""

    queues: list[str]
    lists: list[str]
    tags: str
    keys: list[str]
    args: list[Any]


class Message(virtual.Message):
    """A message whose body was unpacked, and for a task decoded, when it was looked at."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if not isinstance(payload, Delivery):
            super().__init__(payload, channel=channel, **kwargs)
            return
        self._raw = payload
        properties = payload["properties"]
        # Kombu's virtual message would unpack the body once more.
        super(virtual.Message, self).__init__(
            body=payload.body,
            channel=channel,
            delivery_tag=properties["delivery_tag"],
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=_without_compression(payload["headers"]),
            properties=properties,
            delivery_info=properties["delivery_info"],
            **kwargs,
        )
        self._decoded_cache = payload.decoded


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
    #: Largest message, and largest unpacked body, in bytes.
    max_message_bytes = Limits().max_bytes
    max_expanded_bytes = Limits().max_expanded_bytes
    #: Content types of tasks that are accepted; None: all that Kombu has not disabled.
    accept_content_types: Iterable[str] | None = None

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
        self._claims = 0
        self._lease: LeaseKeeper | None = None
        self._client_of_scripts: Any = None
        self._client_of_commands: Any = None
        super().__init__(connection, **kwargs)
        if not self.ack_emulation:
            raise ValueError(
                "ack_emulation=False would lose messages: leave it out of broker_transport_options, "
                "or use Kombu's own transport (waooaw_redis_transport='kombu')"
            )
        self._limits = Limits(
            max_bytes=self.max_message_bytes,
            max_expanded_bytes=self.max_expanded_bytes,
            content_types=None if self.accept_content_types is None else frozenset(self.accept_content_types),
        )

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

    def _put(self, queue: str, message: Any, _publish_batch: Any = None, **kwargs: Any) -> None:
        list_, bell, text = self.key(self._list_of(queue, message)), self.bell(queue), to_text(message)
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
        self._rest = not answer
        if self._asked is not None:
            self._take_in(answer, self._asked)
            if time.monotonic() - self._brpop_sent_at > self.visibility_timeout / 2:
                self._forget_lost()

    def _ask(self, queues: list[str], window: int) -> Asked:
        self._claims += 1
        lists, keys = self._keys_of(tuple(queues))
        tags = f"{self._tag}{self._claims}."
        return Asked(queues, lists, tags, keys, [window, tags, len(queues), *queues])

    def _keys_of(self, queues: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Return the lists of queues, and all keys of a claim, which are the same each time."""
        if self._last_keys[0] != queues:
            lists = [self.key(self._q_for_pri(queue, step)) for step in self.priority_steps for queue in queues]
            keys = [*self._noted_keys, self.key(DEAD_KEY), *map(self.bell, queues), *lists]
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
                self._tell_of_dead(queue, raw, "it is no message")

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
            delivery = read(claim.raw, self._limits)
        except Unreadable as error:
            self._park(claim.tag, claim.queue, claim.raw, str(error))
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
        if self.closed or not self.connection.in_event_loop or not self.active_queues:
            self.flush_acks()

    def flush_acks(self) -> None:
        """Forget what was handled, now."""
        tags = self._take_acks()
        if not tags:
            return
        try:
            unacked, index = self._noted_keys
            pipeline = self.scripts_client.pipeline(transaction=True)
            pipeline.hdel(unacked, *tags)
            pipeline.zrem(index, *tags)
            pipeline.execute()
        except BaseException:
            self._acks.extendleft(reversed(tags))
            raise

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
        payload = message._raw
        _mark_redelivered(payload)
        claim = payload.claim
        self._restore_to([(claim.queue, claim.list)], claim.tag, to_text(payload), front=front)

    def _put_back_unread(self, claim: Claim) -> None:
        """Put a message that nobody saw back to the front of its queue, as it was."""
        self._restore_to([(claim.queue, claim.list)], claim.tag, "", front=True)

    def _put_back_claimed(self, queue: str | None = None) -> None:
        """Put back what was claimed and not delivered yet, of one queue or of all."""
        for claim in reversed(list(self.claimed)):
            if queue in (None, claim.queue):
                self._put_back_unread(claim)
                self.claimed.remove(claim)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.put_back(message, front=not leftmost)

    def restore(self, client: Any, tag: bytes, claimed_at: bytes, noted: bytes) -> bool:
        """Put back a message whose lease is over, or make it a dead letter; return whether that was done.

        Args:
            client: over which to do it.
            tag: the message's.
            claimed_at: when it was claimed or last renewed, by the server's clock.
            noted: what is noted of it.
        """
        try:
            return self._hand_out_again(client, tag, claimed_at, noted)
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - others note here, and what stops one would stop all behind it
            return self._park(tag, "", noted, f"it cannot be put back: {error!r:.200}", client, claimed_at)

    def _hand_out_again(self, client: Any, tag: bytes, claimed_at: bytes, noted: bytes) -> bool:
        payload, exchange, routing_key = kombu_loads(noted)
        payload["headers"] = headers = payload.get("headers") or {}
        count = int(headers.get(DELIVERY_COUNT) or 0) + 1
        queues = [queue for queue in self._lookup(exchange, routing_key) if isinstance(queue, str)]
        if count > self.delivery_limit or not queues:
            reason = f"{count} consumers died with it" if queues else f"no queue is bound to {exchange!r} any more"
            return self._park(tag, str(routing_key), noted, reason, client, claimed_at)
        headers[DELIVERY_COUNT] = count
        _mark_redelivered(payload)
        logger.warning(
            "message %r of %r is handed out again: its consumer died (%d)", headers.get("id"), queues[0], count
        )
        lists = [(queue, self.key(self._list_of(queue, payload))) for queue in queues]
        return self._restore_to(lists, tag, to_text(payload), front=True, client=client, claimed_at=claimed_at)

    def _restore_to(
        self,
        lists: list[tuple[str, str]],
        tag: str | bytes,
        text: str,
        *,
        front: bool,
        client: Any = None,
        claimed_at: bytes | str = "",
    ) -> bool:
        keys = [*self._noted_keys, *(key for queue, list_ in lists for key in (list_, self.bell(queue)))]
        args = [tag, lists[0][0], "front" if front else "back", text, claimed_at]
        return bool(RESTORE(client or self.scripts_client, keys, args))

    def _park(
        self,
        tag: str | bytes,
        queue: str,
        raw: bytes,
        reason: str,
        client: Any = None,
        claimed_at: bytes | str = "",
    ) -> bool:
        """Make a dead letter of a message, and tell of it."""
        keys = [*self._noted_keys, self.key(DEAD_KEY)]
        done = bool(PARK(client or self.scripts_client, keys, [tag, queue, reason, claimed_at]))
        if done:
            self._tell_of_dead(queue, raw, reason)
        return done

    def _tell_of_dead(self, queue: str, raw: bytes, reason: str) -> None:
        id_ = _id_of(raw)
        logger.error(
            "a message of %r became a dead letter: %s (id %r)",
            queue,
            reason,
            id_,
            extra={"action": "message_parked"},
        )
        parked.send(sender=self, queue=queue, raw=raw, message_id=id_, reason=reason)

    # --- connections

    def key(self, name: str) -> str:
        """Return a key as the server knows it."""
        return f"{self.global_keyprefix}{name}"

    def bell(self, queue: str) -> str:
        """Return the key of a queue's doorbell: a list of at most one element."""
        return self.key(f"{queue}{self.sep}bell")

    @property
    def _noted_keys(self) -> tuple[str, str]:
        return self.key(self.unacked_key), self.key(self.unacked_index_key)

    def _list_of(self, queue: str, message: Any) -> str:
        return str(self._q_for_pri(queue, self._get_message_priority(message, reverse=False)))

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
        lease, self._lease = self._lease, None
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


def to_text(message: Any) -> str:
    """Return a message as it travels."""
    try:
        return _encode(message)
    except (TypeError, ValueError):  # values that Kombu wraps, in its headers
        return str(kombu_dumps(message))


def _without_compression(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of a message whose body was unpacked."""
    if "compression" not in headers:
        return headers
    return {name: value for name, value in headers.items() if name != "compression"}


def _mark_redelivered(payload: Any) -> None:
    payload["headers"]["redelivered"] = True
    properties = payload.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get("delivery_info"), dict):
        properties["delivery_info"]["redelivered"] = True


def _id_of(raw: bytes) -> str | None:
    """Return the id of the task that a message, or a note of one, is of, where it can be read."""
    try:
        found = json.loads(raw)
        message = found[0] if isinstance(found, list) else found
        id_ = message["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return id_ if isinstance(id_, str) else None
