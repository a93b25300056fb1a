"""The transport that Kombu is given for Redis, and how it watches the connections of its channels."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import Any

from kombu.exceptions import VersionMismatch
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.eventio import ERR, READ
from redis.exceptions import ResponseError

from waooaw_celery.broker.redis.channel import Channel, SentinelChannel
from waooaw_celery.broker.redis.claim import WAIT_SECONDS
from waooaw_celery.broker.redis.consume import deliver_claimed
from waooaw_celery.broker.redis.scripts import CLAIM

logger = logging.getLogger(__name__)

#: Seconds between two looks for answers that are overdue.
CHECK_SECONDS = 1.0


def _nothing() -> None:
    """Do nothing: whoever waited looks around."""


class Poller(redis.MultiChannelPoller):
    """Watches the connections over which channels claim.

    An answer is read whatever the channel may consume by then: what is in it was claimed already.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Set when a channel has let go of a message: for who waits without an event loop, as gevent's workers do.
        self.room = threading.Event()

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Deliver one message, waiting for it so long: for consumers without an event loop."""
        for channel in self._channels:
            if channel.claimed:
                self._in_protected_read = True
                try:
                    if deliver_claimed(channel):
                        return
                finally:
                    self._in_protected_read = False
                    while self.after_read:
                        self.after_read.pop()()
        if self._is_full():
            # No answer is on its way that would end the wait: whoever acknowledges a message ends it.
            self.room.clear()
            if self._is_full():
                self.room.wait(1.0 if timeout is None else min(timeout, 1.0))
        super().get(callback, 0 if self._is_full() else timeout)

    def _is_full(self) -> bool:
        """Whether every channel holds as much as it may, and only waits for that to change."""
        return bool(self._channels) and all(
            channel.active_queues
            and not channel.active_fanout_queues
            and not channel._in_poll
            and not channel.qos.can_consume()
            for channel in self._channels
        )

    def on_poll_start(self) -> None:
        """Have each channel claim or wait, and forget what was handled."""
        for channel in self._channels:
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
            if channel.claimer.has_plenty():
                continue
            if channel.active_queues and (channel.claimed or channel.qos.can_consume()):
                self._register_BRPOP(channel)
            channel.flush_waiting_acks()

    def maybe_check_brpop_health(self) -> None:
        """Give up connections whose answer is overdue: a line that went dead makes no event that tells of it."""
        for channel in self._channels:
            if channel.claimer.is_overdue():
                logger.warning("a connection is given up: no answer", extra={"action": "connection_overdue"})
                channel.client.connection.disconnect()

    def on_readable(self, fileno: int) -> Any:
        """Read what a connection has to say."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is None:
            logger.debug("nobody listens to descriptor %r any more", fileno)
            return None
        if kind == "BRPOP" and not channel._in_poll:  # the server closed the connection while it was idle
            channel.client.connection.disconnect()
            return None
        return channel.handlers[kind]()

    def handle_event(self, fileno: int, event: int) -> Any:
        """Read what a connection has to say, or that it is gone.

        Returns:
            A true value if a channel was read, which ends the wait of ``drain_events``. None for a descriptor that
            no channel knows: in a worker the poller is the event loop's, and watches the pool's descriptors too.
        """
        found = self._fd_to_chan.get(fileno)
        if found is None:
            return None
        if event & READ:
            return self.on_readable(fileno), self
        if event & ERR:
            channel, kind = found
            channel._poll_error(kind)
        return None


class Transport(redis.Transport):
    """Kombu's Redis transport with an atomic claim, leases and guards."""

    Channel = Channel

    #: Whether an event loop, and not somebody who waits, drives the channels.
    in_event_loop = False
    #: When the event loop turns again, whatever happens, for a channel that lets things come together.
    _turns_at = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        # Kombu has taken it for how long to block; it would sleep as long between two claims, too.
        self.polling_interval = None

    def establish_connection(self) -> Any:
        """Connect, and make sure that the server can do what this transport needs.

        Raises:
            VersionMismatch: it is older than Redis 7.
        """
        connection = super().establish_connection()
        try:
            self._avail_channels[-1].scripts_client.script_load(CLAIM.text)
        except ResponseError as error:
            if "ompil" not in str(error):  # "Error compiling script"
                raise
            self.close_connection(connection)
            raise VersionMismatch(
                "this transport needs Redis 7 or Valkey; for an older server set waooaw_redis_transport='kombu'"
            ) from error
        return connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have an event loop, such as a Celery worker's, drive the channels."""
        self.in_event_loop = True
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        # Kombu looks every 25 s. It knows the timer by this name, and ends it there when it connects again.
        self.cycle._brpop_health_tref.cancel()
        self.cycle._brpop_health_tref = loop.call_repeatedly(CHECK_SECONDS, self.cycle.maybe_check_brpop_health)
        # Kombu's own would register each connection anew at each turn of the loop.
        loop.on_tick.difference_update(loop.on_tick - before)
        loop.on_tick.add(partial(self._on_tick, loop))

    def _on_tick(self, loop: Any) -> None:
        self.cycle.on_poll_start()
        now = time.monotonic()
        if now >= self._turns_at and any(channel.claimer.has_plenty() for channel in self.cycle._channels):
            self._turns_at = now + WAIT_SECONDS
            loop.call_later(WAIT_SECONDS, _nothing)
        for fileno in self.cycle._fd_to_chan:
            if fileno not in loop.readers:
                loop.add_reader(fileno, self.on_readable, fileno)


class SentinelTransport(Transport, redis.SentinelTransport):
    """The same, to the server that a sentinel names."""

    Channel = SentinelChannel
    default_port = redis.SentinelTransport.default_port


#: The transports by the names that Kombu has for its own.
TRANSPORTS: dict[str, Any] = {
    "redis": Transport,
    "rediss": Transport,
    "sentinel": SentinelTransport,
}


# For those who use Kombu alone: waooaw-redis:// and waooaw-sentinel://.
TRANSPORT_ALIASES["waooaw-redis"] = f"{__name__}:Transport"
TRANSPORT_ALIASES["waooaw-sentinel"] = f"{__name__}:SentinelTransport"
