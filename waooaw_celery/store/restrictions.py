"""What operators decide about senders at run time: who is paused, and who has a quota that was set by command.

The publisher of every process looks here before it sends, also where no rate limit is configured. It reads from a
cache, at most a second old, so a send costs no round trip.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from waooaw_celery.errors import SenderPaused, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors

logger = get_logger(__name__)

#: Seconds for which the cache is used, and for which a store that did not answer is not asked again.
CACHE_SECONDS, FAILURE_SECONDS = 1.0, 5.0
#: The age of the cache in seconds from which a send waits for the store, and how long it waits.
IDLE_SECONDS, WAIT_SECONDS = 3.0, 0.5

_PAUSED = "waooaw:paused"
_LIMITED = "waooaw:limited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The pause of a sender.

    Attributes:
        agent: the sender, whose sends are refused.
        by: who paused it.
        since: when, aware UTC.
        reason: why, or None.
    """

    agent: str
    by: str
    since: datetime
    reason: str | None


@dataclass(frozen=True, slots=True)
class KnownRestrictions:
    """The restrictions of all senders.

    Attributes:
        pauses: the pauses, by sender.
        limited: the senders with a quota that was set at run time.
    """

    pauses: Mapping[str, Pause]
    limited: frozenset[str]


_NONE = KnownRestrictions({}, frozenset())


class Restrictions(ABC):
    """The restrictions of senders, shared by all processes.

    Example:
        >>> app.restrictions.pause("planner", by="ada", reason="it sends in a circle")
        >>> app.restrictions.resume("planner")
        True
    """

    def __init__(self) -> None:
        self._known: KnownRestrictions | None = None
        self._read_at = self._read_again_at = 0.0
        #: Whether this process has changed what is stored, so that its next send waits for the store.
        self._was_changed = False
        self._reading: threading.Thread | None = None

    def check(self, senders: Iterable[str]) -> None:
        """Refuse senders that are paused.

        Raises:
            SenderPaused: one of them is.
        """
        pauses = self.known().pauses
        if pauses:
            for sender in senders:
                if sender in pauses:
                    pause = pauses[sender]
                    raise SenderPaused(sender, pause.by, pause.since, pause.reason)

    def known(self) -> KnownRestrictions:
        """Return the restrictions from the cache.

        The first call waits for the store. Later ones have a thread read it again when the cache is older than
        ``CACHE_SECONDS``. In a process that has sent nothing for some time, they wait shortly for the thread.
        While the store does not answer, the last known ones apply.
        """
        now = time.monotonic()
        if now >= self._read_again_at:
            self._read_again_at = now + CACHE_SECONDS  # one thread reads; meanwhile the others use what is known
            if self._known is None or self._was_changed:
                self._was_changed = False
                self._refresh()
            else:
                self._refresh_in_thread(WAIT_SECONDS if now - self._read_at > IDLE_SECONDS else 0.0)
        return self._known or _NONE

    def _refresh_in_thread(self, wait: float) -> None:
        if self._reading is not None and self._reading.is_alive():  # the store does not answer
            return
        self._reading = threading.Thread(target=self._refresh, name="waooaw-restrictions", daemon=True)
        try:
            self._reading.start()
            self._reading.join(wait)
        except RuntimeError:  # there are too many threads, or the interpreter is shutting down
            self._reading = None
            self._refresh()

    def _refresh(self) -> None:
        began = time.monotonic()
        try:
            self._known = self._read()
            self._read_at, self._read_again_at = began, began + CACHE_SECONDS
        except StoreUnavailable as error:
            self._read_again_at = time.monotonic() + FAILURE_SECONDS
            logger.warning(
                "cannot read which senders are paused or limited, so what was read last applies: %s",
                error,
                extra={"action": "restrictions_not_read"},
            )
        except Exception:
            self._read_again_at = time.monotonic() + FAILURE_SECONDS
            logger.exception(
                "reading which senders are paused or limited failed, so what was read last applies",
                extra={"action": "restrictions_failed"},
            )

    def pauses(self) -> list[Pause]:
        """Return all pauses as they are stored now, by the names of the senders.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        found = self._read().pauses
        return [found[agent] for agent in sorted(found)]

    def pause(self, agent: str, *, by: str, reason: str | None = None) -> None:
        """Refuse every send of an agent, in all processes within about a second.

        A second pause replaces the first. What was accepted before, such as answers and retries, is still sent.

        Args:
            agent: the sender.
            by: who pauses it, for the error that its sends get.
            reason: why, for the same error.

        Raises:
            StoreUnavailable: the store does not answer.
            InvalidMessage: the name is invalid.
        """
        self._pause(check_agent_name(agent), by, reason)
        self._forget_cache()

    def resume(self, agent: str) -> bool:
        """Let a paused agent send again, in all processes within about a second.

        Returns:
            Whether it was paused.

        Raises:
            StoreUnavailable: the store does not answer.
            InvalidMessage: the name is invalid.
        """
        was_paused = self._resume(check_agent_name(agent))
        self._forget_cache()
        return was_paused

    def set_limited(self, agent: str, limited: bool) -> None:
        """Note whether an agent has a quota that was set at run time. The rate limiter calls it.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        self._set_limited(agent, limited)
        self._forget_cache()

    def _forget_cache(self) -> None:
        self._was_changed, self._read_again_at = True, 0.0

    @abstractmethod
    def _read(self) -> KnownRestrictions:
        """Return what is stored."""

    @abstractmethod
    def _pause(self, agent: str, by: str, reason: str | None) -> None:
        """Store a pause that begins now."""

    @abstractmethod
    def _resume(self, agent: str) -> bool:
        """Remove a pause, and return whether there was one."""

    @abstractmethod
    def _set_limited(self, agent: str, limited: bool) -> None:
        """Store whether an agent has a quota of its own."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""


class RedisRestrictions(Restrictions):
    """The restrictions in Redis: the pauses in a hash, the limited senders in a set.

    Args:
        client: client of the Redis.
        prefix: what stands before every key.
    """

    def __init__(self, client: Client, prefix: str = "") -> None:
        super().__init__()
        self._client = client
        self._paused_key, self._limited_key = f"{prefix}{_PAUSED}", f"{prefix}{_LIMITED}"

    def _read(self) -> KnownRestrictions:
        with store_errors("read the paused senders"), self._client.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(self._paused_key)
            pipeline.smembers(self._limited_key)
            paused, limited = pipeline.execute()
        pauses = {}
        for agent, text in paused.items():
            fields = json.loads(text)
            since = datetime.fromisoformat(fields["since"])
            pauses[agent] = Pause(agent=agent, by=fields["by"], since=since, reason=fields["reason"])
        return KnownRestrictions(pauses, frozenset(limited))

    def _pause(self, agent: str, by: str, reason: str | None) -> None:
        with store_errors(f"pause {agent!r}"):
            since = datetime.fromtimestamp(redis_time(self._client.time()), UTC)
            fields = {"by": by, "since": since.isoformat(), "reason": reason}
            self._client.hset(self._paused_key, agent, json.dumps(fields))

    def _resume(self, agent: str) -> bool:
        with store_errors(f"resume {agent!r}"):
            return bool(self._client.hdel(self._paused_key, agent))

    def _set_limited(self, agent: str, limited: bool) -> None:
        with store_errors(f"note the quota of {agent!r}"):
            (self._client.sadd if limited else self._client.srem)(self._limited_key, agent)

    def close(self) -> None:
        self._client.close()
