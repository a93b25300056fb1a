"""The claim: what the script is asked over the polling connection, and what becomes of its answer."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from kombu.transport import redis
from redis.exceptions import NoScriptError

from waooaw_celery.broker.incoming.delivery import TAG_SEPARATOR, Claim
from waooaw_celery.broker.redis.acks import Acknowledgements
from waooaw_celery.broker.redis.parking import notify_dead_lettered
from waooaw_celery.broker.redis.scripts import CLAIM, TOUCH

#: Seconds for which a consumer that may hold so many, and holds three quarters of them, lets what it could claim
#: and has acknowledged come together: results of a pool arrive one by one, and each would be a round trip.
WAIT_SECONDS = 0.01
PLENTY = 16


class ClaimRequest(NamedTuple):
    """What a claim asked for, to understand its answer."""

    window: int
    queues: tuple[str, ...]
    lists: list[str]
    tags: str
    keys: list[str]
    args: list[Any]


class Claimer:
    """Claims messages for one channel, and keeps those that were not delivered yet.

    The polling connection says one thing at a time::

        nothing ── start() ──> "claim", or "bell" when the last claim found nothing
           ^                             │
           └── read(), settle(), or the connection is lost

    Args:
        channel: for which it claims.
        acks: what is to be forgotten with the next claim.

    Attributes:
        claimed: what was claimed and not delivered yet, in order.
        found_nothing: whether the last claim came back empty, so that it is the doorbell's turn.
    """

    def __init__(self, channel: Any, acks: Acknowledgements) -> None:
        self._channel = channel
        self._acks = acks
        self.claimed: deque[Claim] = deque()
        self.found_nothing = False
        self._said: Literal["", "claim", "bell"] = ""
        self._said_at = 0.0
        self._asked: ClaimRequest | None = None
        self._known = True  # whether the server knows the script
        self._tag = f"{TAG_SEPARATOR}{uuid4().hex}:"
        self._count = 0
        self._last_keys: tuple[tuple[str, ...], list[str], list[str]] = (), [], []

    # --- over the polling connection

    def start(self, queues: tuple[str, ...], bell_seconds: float) -> None:
        """Claim, or, when nothing was there, wait for a doorbell.

        Args:
            queues: names of the queues, the one whose turn it is first.
            bell_seconds: to wait for a doorbell.
        """
        channel = self._channel
        connection = channel.client.connection
        if self.found_nothing and not self._acks and not self.claimed:
            self._said = "bell"
            command = ["BLPOP", *map(channel.keys.bell, queues), bell_seconds]
        else:
            self._said = "claim"
            self._asked = self._ask(queues, max(channel.qos.window(), 0))
            args = [*self._asked.args, *self._acks.send()]
            command = CLAIM.command(self._asked.keys, args, known=self._known)
        channel._in_poll = connection
        channel._brpop_sent_at = self._said_at = time.monotonic()
        connection.send_command(*command)

    def read(self, **options: Any) -> None:
        """Read the answer, and keep what was claimed.

        Raises:
            RedisError: the connection was lost, or the server refuses.
        """
        channel = self._channel
        said, self._said = self._said, ""
        try:
            answer = channel.client.parse_response(channel.client.connection, "EVALSHA", **options)
        except NoScriptError:
            self._known = False  # it is given the text next time
            return
        except channel.connection_errors:
            channel.client.connection.disconnect()
            raise
        finally:
            channel._in_poll = None
            channel._flush_brpop_reauth()
        if said == "bell":
            self.found_nothing = False
            return
        self._known = True
        self._acks.arrived()
        if self._asked is not None:
            self.found_nothing = not answer and self._asked.window > 0
            self._take_in(answer, self._asked)
            if time.monotonic() - self._said_at > channel.visibility_timeout / 2:
                self._forget_lost()

    def settle(self) -> None:
        """Read what the polling connection was told to claim, so that nothing waits in it for nobody."""
        channel = self._channel
        if not channel._in_poll:
            return
        if self._said == "bell":
            channel.client.connection.disconnect()
            self._said, channel._in_poll = "", None
            return
        self.read()

    @property
    def waits_for_bell(self) -> bool:
        """Whether the next claim is as far away as the next ring of a bell."""
        return self._said == "bell"

    def is_overdue(self) -> bool:
        """Whether the server should have answered by now: a claim at once, a bell when it is given up."""
        channel = self._channel
        connection = channel._in_poll
        patience = channel.socket_timeout or channel.health_check_interval
        if not connection or not connection._sock or not patience:
            return False
        wait = patience + (channel.brpop_timeout if self.waits_for_bell else 0.0)
        # A handler may have kept the event loop from reading an answer that is there.
        return time.monotonic() - self._said_at > wait and not redis._socket_readable(connection._sock)

    def has_plenty(self) -> bool:
        """Whether this consumer has enough to do for a moment, and need not say anything yet."""
        channel = self._channel
        most = channel.qos.prefetch_count
        return bool(
            most >= PLENTY
            and not channel._in_poll
            and not self.found_nothing
            and not self.claimed
            and channel.connection.in_event_loop
            and channel.active_queues
            and channel.qos.window() * 4 < most
            and time.monotonic() - self._said_at < WAIT_SECONDS
        )

    # --- over another connection

    def fetch(self, queue: str) -> Claim | None:
        """Claim one message of a queue, and return it, if there is one."""
        asked = self._ask((queue,), 1)
        before = len(self.claimed)
        self._take_in(CLAIM(self._channel.scripts_client, asked.keys, asked.args), asked)
        return self.claimed.pop() if len(self.claimed) > before else None

    # --- what is asked, and what was answered

    def _ask(self, queues: tuple[str, ...], window: int) -> ClaimRequest:
        self._count += 1
        lists, keys = self._keys_of(queues)
        tags = f"{self._tag}{self._count}."
        return ClaimRequest(
            window, queues, lists, tags, keys, [window, tags, len(queues), self._channel.dead_letters_max, *queues]
        )

    def _keys_of(self, queues: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Return the lists of queues, and all keys of a claim, which are the same each time."""
        if self._last_keys[0] != queues:
            keys = self._channel.keys
            lists = keys.lists(queues)
            self._last_keys = queues, lists, [*keys.noted, keys.dead, *map(keys.bell, queues), *lists]
        return self._last_keys[1], self._last_keys[2]

    def _take_in(self, answer: list[Any], asked: ClaimRequest) -> None:
        """Keep what was claimed, in order; tell of what was parked."""
        number = 0
        for position, raw in zip(answer[::2], answer[1::2], strict=True):
            list_ = abs(position) - 1
            queue = asked.queues[list_ % len(asked.queues)]
            if position > 0:
                number += 1
                self.claimed.append(Claim(f"{asked.tags}{number}", queue, asked.lists[list_], raw))
            else:
                notify_dead_lettered(self._channel, queue, raw, "it is no message")

    def _forget_lost(self) -> None:
        """Let go of what is another's by now: an answer was read so late that nobody renewed what is in it."""
        for claim in list(self.claimed):
            if not TOUCH(self._channel.scripts_client, [self._channel.keys.index], [0, claim.tag]):
                self.claimed.remove(claim)
