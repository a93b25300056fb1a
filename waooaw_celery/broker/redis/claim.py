"""Claims messages for a channel: sends the claim script over the polling connection, and reads its reply."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from kombu.transport import redis
from redis.exceptions import NoScriptError

from waooaw_celery.broker.incoming.delivery import LEASE_TAG_PREFIX, Claim
from waooaw_celery.broker.redis.acks import Acknowledgements, claim_args, log_failed
from waooaw_celery.broker.redis.dead_lettering import notify_dead_lettered
from waooaw_celery.broker.redis.scripts import CLAIM, CLAIM_GROUPS, TOUCH, Script, packed

#: Seconds between two claims of a consumer with a large prefetch count that is three quarters full. The results of
#: a pool arrive one by one, and without this delay each would cost a round trip.
CLAIM_DELAY_SECONDS = 0.01
#: The smallest prefetch count for which claims are delayed.
MIN_DELAYED_PREFETCH = 16
#: Values of the second part of a claimed item, beside 0 and 1: ``claim_groups.lua`` explains them.
_DROPPED = _NEEDS_KEY = 2
_CANCEL = 3


class ClaimRequest(NamedTuple):
    """A claim that was sent, needed to read its reply."""

    window: int
    queues: tuple[str, ...]
    lists: list[str]
    tag_prefix: str
    keys: list[str]
    packed_keys: bytes
    args: list[Any]
    script: Script


class Claimer:
    """Claims messages for one channel, and stores those that are not delivered yet.

    The polling connection waits for one reply at a time::

        "" ── start() ──> "claim", or "bell" if the last claim was empty, or "look" if no doorbell was rung since
        ^                             │
        └── read(), finish(), or the connection is lost

    Args:
        channel: The channel to claim for.
        acks: The acknowledgements to send with the next claim.

    Attributes:
        claimed: The messages that were claimed and not delivered yet, in order.
        last_was_empty: Whether the last claim found no message, so that the next step is to wait for the doorbell.
    """

    def __init__(self, channel: Any, acks: Acknowledgements) -> None:
        self._channel = channel
        self._acks = acks
        self.claimed: deque[Claim] = deque()
        self.last_was_empty = False
        self._awaiting: Literal["", "claim", "bell", "look"] = ""
        #: Whether the last wait for a doorbell ended without one. Kombu's own producers ring none.
        self._was_silent = False
        self._sent_at = 0.0
        self._request: ClaimRequest | None = None
        self._script_is_loaded = True
        self._tag_prefix = f"{LEASE_TAG_PREFIX}{uuid4().hex}:"
        self._count = 0
        self._last_keys: tuple[Any, list[str], list[str], bytes] = (), [], [], b""
        #: How much of a claim that begins with the least urgent priority is due.
        self._share = 0.0

    # --- over the polling connection

    def start(self, queues: tuple[str, ...], bell_seconds: float) -> None:
        """Send a claim, or wait for a doorbell if the last claim was empty.

        Args:
            queues: The names of the queues, in the order of their turns.
            bell_seconds: How long to wait for a doorbell.
        """
        channel = self._channel
        connection = channel.client.connection
        if self.last_was_empty and not self._acks and not self.claimed:
            self._awaiting = "look" if self._was_silent else "bell"
            if self._was_silent:
                parts: list[Any] = ["EXISTS", *self._keys_of(queues)[0], *self._sublists(queues)]
            else:
                parts = ["BLPOP", *map(channel.keys.bell, queues), bell_seconds]
            command = b"*%d\r\n%b" % (len(parts), packed(*parts))
        else:
            self._awaiting = "claim"
            self._request = self._new_request(queues, max(channel.qos.window(), 0))
            args = self._request.args + self._acks.take_for_claim()
            count, keys = len(self._request.keys), self._request.packed_keys
            command = self._request.script.packed(count, keys, args, is_loaded=self._script_is_loaded)
        channel._in_poll = connection
        channel._brpop_sent_at = self._sent_at = time.monotonic()
        connection.send_packed_command([command])

    def read(self, **options: Any) -> None:
        """Read the reply, and store the claimed messages.

        Raises:
            RedisError: The connection was lost, or the server refused the command.
        """
        channel = self._channel
        client = channel.client
        awaited, self._awaiting = self._awaiting, ""
        try:
            reply = client.parse_response(client.connection, "EVALSHA", **options)
        except NoScriptError:
            self._script_is_loaded = False  # the next claim sends the script's text
            return
        except channel.connection_errors:
            client.connection.disconnect()
            raise
        finally:
            channel._in_poll = None
            channel._flush_brpop_reauth()
        if awaited in {"bell", "look"}:
            self._was_silent = awaited == "bell" and not reply
            self.last_was_empty = not reply
            return
        self._script_is_loaded = True
        self._acks.confirm_claim()
        if self._request is not None:
            found = self._store(reply, self._request)
            self.last_was_empty = not found and self._request.window > 0
            if time.monotonic() - self._sent_at > channel.visibility_timeout / 2:
                self._drop_expired()

    def finish(self) -> None:
        """Read the reply of a claim that was sent, so that no claimed message is left in the connection."""
        channel = self._channel
        if not channel._in_poll:
            return
        if self._awaiting == "bell":
            channel.client.connection.disconnect()
            self._awaiting, channel._in_poll = "", None
            return
        self.read()

    @property
    def awaits_bell(self) -> bool:
        """Whether the connection waits for a doorbell, so that the next claim may be far away."""
        return self._awaiting == "bell"

    def is_overdue(self) -> bool:
        """Whether the server should have answered by now."""
        channel = self._channel
        connection = channel._in_poll
        timeout = channel.socket_timeout or channel.health_check_interval
        if not connection or not connection._sock or not timeout:
            return False
        limit = timeout + (channel.brpop_timeout if self.awaits_bell else 0.0)
        # The reply may have arrived while a handler kept the event loop from reading it.
        return time.monotonic() - self._sent_at > limit and not redis._socket_readable(connection._sock)

    def should_delay(self) -> bool:
        """Whether to wait before the next claim, so that it takes several acknowledgements along."""
        channel = self._channel
        if self.last_was_empty or self.claimed or channel._in_poll:  # the event loop asks in each of its turns
            return False
        prefetch = channel.qos.prefetch_count
        return bool(
            prefetch >= MIN_DELAYED_PREFETCH
            and channel.connection.in_event_loop
            and channel.active_queues
            and channel.qos.window() * 4 < prefetch
            and time.monotonic() - self._sent_at < CLAIM_DELAY_SECONDS
        )

    # --- over another connection

    def claim_one(self, queue: str) -> Claim | None:
        """Claim one message of a queue, and return it, or None if the queue is empty."""
        request = self._new_request((queue,), 1, records=False)
        before = len(self.claimed)
        self._store(request.script(self._channel.scripts_client, request.keys, [*request.args, 0]), request)
        return self.claimed.pop() if len(self.claimed) > before else None

    # --- requests and replies

    def _new_request(self, queues: tuple[str, ...], window: int, *, records: bool = True) -> ClaimRequest:
        self._count += 1
        tag_prefix = f"{self._tag_prefix}{self._count}."
        channel, groups = self._channel, self._channel.groups
        is_reversed = records and window > 0 and self._takes_least_urgent()
        lists, keys, packed_keys = self._keys_of(queues, is_reversed)
        args = claim_args(
            *(window, tag_prefix, queues, channel.dead_letters_max),
            deliveries=channel.deliveries if records else None,
            rooms=self._rooms() if records and window else (),
            groups=b"" if groups is None else groups.take_argument(is_reversed),
        )
        script = CLAIM if groups is None else CLAIM_GROUPS
        return ClaimRequest(window, queues, lists, tag_prefix, keys, packed_keys, args, script)

    def _takes_least_urgent(self) -> bool:
        """Whether the next claim begins with the least urgent priority, as a share of all claims does."""
        self._share += self._channel.least_urgent_share
        if self._share < 1.0:
            return False
        self._share -= 1.0
        return True

    def _sublists(self, queues: tuple[str, ...]) -> list[str]:
        """Return the keys that exist while grouped messages of queues wait."""
        return [] if self._channel.groups is None else list(map(self._channel.keys.sublists, queues))

    def _rooms(self) -> list[tuple[str, int]]:
        """Return how many messages to claim for each handler of batches."""
        batches = self._channel.batches
        if batches is None:
            return []
        # What waits here may be for the same batch.
        return [(name, 0 if self.claimed else room) for name, room in batches.rooms()]

    def _keys_of(self, queues: tuple[str, ...], is_reversed: bool = False) -> tuple[list[str], list[str], bytes]:
        """Return the lists of queues, and all keys of a claim, also packed.

        Most claims repeat the queues of the last one.

        Args:
            queues: The names of the queues.
            is_reversed: Whether the lists of the least urgent priority come first.
        """
        if self._last_keys[0] != (queues, is_reversed):
            keys = self._channel.keys
            lists = keys.lists(queues, is_reversed)
            every = [*keys.noted, keys.dead_letters, *map(keys.bell, queues), *lists]
            self._last_keys = (queues, is_reversed), lists, every, packed(*every)
        return self._last_keys[1:]

    def _store(self, reply: list[Any], request: ClaimRequest) -> bool:
        """Store the claimed messages in order, and report those that the script made dead letters.

        Returns:
            Whether there was an item.
        """
        number, found = 0, False
        for position, recorded, raw in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
            if position == 0 and recorded == _NEEDS_KEY:
                self._channel.groups.add_key(raw, self._channel.caps)
                found = True  # the next claim has its key
                continue
            if position == 0:
                self._channel.groups.cancel(raw) if recorded == _CANCEL else log_failed(raw)
                continue
            found = True
            list_ = abs(position) - 1
            queue = request.queues[list_ % len(request.queues)]
            if position > 0:
                number += 1
                tag, is_recorded = f"{request.tag_prefix}{number}", recorded == 1
                self.claimed.append(
                    Claim(tag, queue, request.lists[list_], raw, is_recorded, recorded == _DROPPED)
                )
            else:
                notify_dead_lettered(self._channel, queue, raw, "it is not a message")
        return found

    def _drop_expired(self) -> None:
        """Drop claimed messages whose lease has ended: the reply was read so late that they were redelivered."""
        for claim in list(self.claimed):
            if not TOUCH(self._channel.scripts_client, [self._channel.keys.index], [0, claim.tag]):
                self.claimed.remove(claim)
