"""Results on Redis, which one subscription of the process receives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from celery.states import READY_STATES
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.results import source
from waooaw_celery.results.pending import BACKEND_ERRORS, CHUNK, FETCH_AFTER_SECONDS, PendingResult, PendingResults
from waooaw_celery.results.subscription import Subscription

logger = get_logger(__name__)

#: Seconds for which the thread goes on to receive after the last request. To wake it for each would cost more.
LINGER_SECONDS = 2.0
#: Ended requests whose results are removed at once. Fewer wait for the end of a round.
MANY_ENDED = 200
#: Results that are read or deleted with one command.
BATCH_SIZE = 500
#: Seconds for which a request waits for a lost connection before it is refused.
RECONNECT_SECONDS = 2.0


class SubscribedResults:
    """The source of results on Redis.

    Args:
        backend: Celery's result backend of the collector's thread.
        pending: The requests.
        start: How their ids begin.
    """

    reply_to = None

    def __init__(self, backend: Any, pending: PendingResults, start: str) -> None:
        self.backend = backend
        self._pending = pending
        self._subscription = Subscription(backend, start)
        self._connected = threading.Event()
        #: When the last round without a message ended, and when the next one ends.
        self._quiet_at = self._round_at = 0.0
        #: When a request was last pending.
        self._active_at = 0.0

    def open(self) -> None:
        """Connect. See `ResultSource.open`."""
        self._subscription.open()
        self._connected.set()

    def expect(self, pending: PendingResult) -> None:
        """Add a request. See `ResultSource.expect`."""
        if not self._connected.is_set() and not self._connected.wait(RECONNECT_SECONDS):
            raise RedisConnectionError("the connection to it is lost")
        self._pending.add(pending)
        self._subscription.add(pending.message_id)

    def receive(self, ends: Callable[[], bool]) -> None:
        """Receive results until there is nothing to do for a while. See `ResultSource.receive`."""
        self._active_at = time.monotonic()
        while not ends():
            began = time.monotonic()
            arrived = self._read()
            for message_id, text in arrived:
                self._take(message_id, text)
            now = time.monotonic()
            if not arrived and now > began + source.ROUND_SECONDS / 2:
                self._quiet_at = now
            if now < self._round_at and self._pending.ended_count < MANY_ENDED:
                continue
            self._round_at = now + source.ROUND_SECONDS
            self.forget(self._pending.take_ended())
            self.fetch_due()
            if self._pending:
                self._active_at = now
            elif now > self._active_at + LINGER_SECONDS:
                return

    def fetch_due(self) -> None:
        """Fetch results whose notice did not arrive. See `ResultSource.fetch_due`."""
        now = time.monotonic()
        due = self._pending.due(now)
        if not due:
            return
        for pending in due:
            pending.plan_next_fetch(now)
        try:
            stored = list(self._stored(due))
        except BACKEND_ERRORS as error:  # if the server stays away, the subscription is lost too
            logger.warning("results cannot be fetched: %s", error, extra={"action": "results_not_fetched"})
            return
        missed = False
        for pending, text in stored:
            meta = self._decode(pending, text)
            if meta is None or meta["status"] not in READY_STATES:
                continue
            if self._may_still_arrive(pending, now):
                pending.fetch_at = now + (
                    source.ROUND_SECONDS if pending.on_chunk is None else FETCH_AFTER_SECONDS
                )
                continue
            self._pending.resolve(pending.message_id, meta)
            missed = True
        if missed:
            self._connected.clear()
            self._reopen()

    def forget(self, ended: Sequence[PendingResult]) -> None:
        """Remove results. See `ResultSource.forget`."""
        rest = iter(ended)
        while batch := [pending.message_id for pending in islice(rest, BATCH_SIZE)]:
            try:
                for message_id in batch:
                    self._subscription.remove(message_id)
                self.backend.client.delete(*map(self._subscription.channel, batch))
            except BACKEND_ERRORS as error:
                source.log_not_removed(len(batch), error)

    def close(self) -> None:
        """Close the connections. See `ResultSource.close`."""
        self._connected.clear()
        self._subscription.close()
        self.backend.client.connection_pool.disconnect()

    def _read(self) -> list[tuple[str, Any]]:
        """Wait for results for at most a round. A lost connection is replaced."""
        try:
            return self._subscription.read(source.ROUND_SECONDS)
        except (RedisError, OSError) as error:
            self._connected.clear()
            logger.info(
                "the connection to the result backend was lost, and is opened again: %s",
                error,
                extra={"action": "results_connection_lost"},
            )
            self._reopen()
            return []

    def _reopen(self) -> None:
        """Connect again, and fetch the results that were stored meanwhile.

        Raises:
            RedisError, OSError: The server does not answer, as often as Celery's policy says.
        """
        self.backend.ensure(self.open, ())
        for pending, text in self._stored(self._pending.all()):
            meta = self._decode(pending, text)
            if meta is not None and meta["status"] in READY_STATES:
                self._pending.resolve(pending.message_id, meta)

    def _stored(self, requests: Iterable[PendingResult]) -> Iterable[tuple[PendingResult, Any]]:
        """Return what the backend stores for requests; None: nothing."""
        rest = iter(requests)
        while batch := list(islice(rest, BATCH_SIZE)):
            keys = [self._subscription.channel(pending.message_id) for pending in batch]
            yield from zip(batch, self.backend.mget(keys), strict=True)

    def _may_still_arrive(self, pending: PendingResult, now: float) -> bool:
        """Whether a result that was fetched, or chunks of it, may still arrive as messages.

        A worker publishes the chunks before it stores the result, but a fetch may see the result before the chunks
        arrive. After a round without any message all of them have arrived.
        """
        if pending.seen_at is None:
            pending.seen_at = now
            return True
        if pending.on_chunk is None:
            return False
        return self._quiet_at <= pending.seen_at and now < pending.seen_at + source.CHUNKS_SECONDS

    def _take(self, message_id: str, text: Any) -> None:
        """Take a message: a result, a chunk of one, or a state of which nobody need know."""
        pending = self._pending.get(message_id)
        if pending is None:
            return
        try:
            meta = self.backend.decode_result(text)
            state = meta["status"]
        except Exception:  # anybody may publish; what is stored decides
            logger.exception(
                "a message about the result of request %s cannot be read; the result is fetched",
                message_id,
                extra={"action": "damaged_result", "message_id": message_id},
            )
            pending.fetch_at = 0.0
            return
        if state == CHUNK:
            self._pending.pass_chunk(pending, meta.get("result"))
        elif state in READY_STATES:
            self._pending.resolve(message_id, meta)

    def _decode(self, pending: PendingResult, text: Any) -> Any:
        """Return a stored result; None if there is none, or if it cannot be read: then its request has failed."""
        try:
            return None if text is None else self.backend.decode_result(text)
        except Exception as error:  # noqa: BLE001 - the future raises it
            self._pending.fail(error, pending.message_id)
            return None
