"""The Redis transport for Kombu, and the poller that watches the connections of its channels."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

from kombu.exceptions import VersionMismatch
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.eventio import ERR, READ
from redis.exceptions import ResponseError

from waooaw_celery.broker.redis.channel import Channel, SentinelChannel
from waooaw_celery.broker.redis.claim import CLAIM_DELAY_SECONDS
from waooaw_celery.broker.redis.consume import deliver_claimed
from waooaw_celery.broker.redis.scripts import CLAIM
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.redis_refusals import RedisRefuses, remedy

logger = get_logger(__name__)

#: Seconds between two checks for overdue replies.
CHECK_SECONDS = 1.0


def _refusal(error: ResponseError, key: str) -> Exception:
    """Return the error of a connection whose server refused its first commands."""
    if "ompil" in str(error):  # "Error compiling script"
        return VersionMismatch(
            "this transport needs Redis 7 or Valkey; for an older server set waooaw_redis_transport='kombu'"
        )
    reason = remedy(error, [key])
    return error if reason is None else RedisRefuses(reason)


def _wake_up() -> None:
    """Do nothing: a timer that calls this makes the event loop run its tick."""


class Poller(redis.MultiChannelPoller):
    """Watches the connections over which channels claim.

    A reply is read even if the channel may not consume any more: its messages are already claimed.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Set when a channel has given up a message, for consumers without an event loop, as in gevent workers.
        self.capacity_changed = threading.Event()

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Deliver one message, for consumers without an event loop.

        Args:
            callback: Kombu's callback for a delivered message.
            timeout: Seconds to wait for a message; None: no limit.
        """
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
            # No reply will end the wait below. An acknowledgement in another thread ends this one.
            self.capacity_changed.clear()
            if self._is_full():
                self.capacity_changed.wait(1.0 if timeout is None else min(timeout, 1.0))
        super().get(callback, 0 if self._is_full() else timeout)

    def _is_full(self) -> bool:
        """Whether each channel holds as many messages as it may, and has no other reply to wait for."""
        return bool(self._channels) and all(
            channel.active_queues
            and not channel.active_fanout_queues
            and not channel._in_poll
            and not channel.qos.can_consume()
            for channel in self._channels
        )

    def on_poll_start(self) -> bool:
        """Let each channel claim or wait, and send its acknowledgements.

        Returns:
            Whether a channel delays its claim.
        """
        is_delayed = False
        for channel in self._channels:
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
            if channel.claimer.should_delay():
                is_delayed = True
                continue
            if channel.active_queues and (channel.claimed or channel.qos.can_consume()):
                self._register_BRPOP(channel)
            channel.flush_pending_acks()
        return is_delayed

    def maybe_check_brpop_health(self) -> None:
        """Close connections whose reply is overdue: a dead network connection causes no event."""
        for channel in self._channels:
            if channel.claimer.is_overdue():
                logger.warning(
                    "closing a connection: Redis did not answer in time", extra={"action": "connection_overdue"}
                )
                channel.client.connection.disconnect()

    def on_readable(self, fileno: int) -> Any:
        """Read what arrived on a connection."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is None:
            logger.debug("no channel uses descriptor %r any more", fileno)
            return None
        if kind == "BRPOP" and not channel._in_poll:  # the server closed the connection while it was idle
            channel.client.connection.disconnect()
            return None
        return channel.handlers[kind]()

    def handle_event(self, fileno: int, event: int) -> Any:
        """Read what arrived on a connection, or handle its loss.

        Returns:
            A true value if a channel was read: this ends the wait of ``drain_events``. None for a descriptor that
            belongs to no channel: in a worker this poller is the event loop's, which also watches the pool.
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
    """Kombu's Redis transport with an atomic claim, leases and the guard."""

    Channel = Channel

    #: Whether an event loop drives the channels, as in most Celery workers.
    in_event_loop = False
    #: The thread of the event loop.
    loop_thread = 0
    #: When the timer that wakes the event loop for a delayed claim fires, by the monotonic clock.
    _wakes_at = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        # Kombu has taken it as the time to block for. It would also sleep for as long between two claims.
        self.polling_interval = None

    def establish_connection(self) -> Any:
        """Connect, and check that the server has what this transport needs.

        Raises:
            VersionMismatch: The server is older than Redis 7.
            RedisRefuses: It takes no writes, or its user may not do what each message needs.
        """
        connection = super().establish_connection()
        channel = self._avail_channels[-1]
        with channel.scripts_client.pipeline(transaction=False) as pipeline:
            pipeline.script_load(CLAIM.text)
            pipeline.expire(channel.keys.probe, 1)  # a write that changes nothing, as there is no such key
            replies = pipeline.execute(raise_on_error=False)
        for error in replies:
            if isinstance(error, ResponseError):
                self.close_connection(connection)
                raise _refusal(error, channel.keys.probe) from error
        return connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let an event loop, such as a Celery worker's, drive the channels."""
        self.in_event_loop, self.loop_thread = True, threading.get_ident()
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        # Kombu checks every 25 s. It cancels the timer under this name when it reconnects.
        self.cycle._brpop_health_tref.cancel()
        self.cycle._brpop_health_tref = loop.call_repeatedly(CHECK_SECONDS, self.cycle.maybe_check_brpop_health)
        # Kombu's own tick would register each connection again in each turn of the loop.
        loop.on_tick.difference_update(loop.on_tick - before)
        loop.on_tick.add(partial(self._on_tick, loop))

    def _on_tick(self, loop: Any) -> None:
        if self.cycle.on_poll_start() and (now := time.monotonic()) >= self._wakes_at:
            self._wakes_at = now + CLAIM_DELAY_SECONDS
            loop.call_later(CLAIM_DELAY_SECONDS, _wake_up)
        for fileno in self.cycle._fd_to_chan:
            if fileno not in loop.readers:
                loop.add_reader(fileno, self.on_readable, fileno)


class SentinelTransport(Transport, redis.SentinelTransport):
    """The same transport for the master that a Redis Sentinel names."""

    Channel = SentinelChannel
    default_port = redis.SentinelTransport.default_port


#: The transports by Kombu's names for its own.
TRANSPORTS: dict[str, Any] = {
    "redis": Transport,
    "rediss": Transport,
    "sentinel": SentinelTransport,
}


# For programs that use Kombu without this package's application: waooaw-redis:// and waooaw-sentinel://.
TRANSPORT_ALIASES["waooaw-redis"] = f"{__name__}:Transport"
TRANSPORT_ALIASES["waooaw-sentinel"] = f"{__name__}:SentinelTransport"
