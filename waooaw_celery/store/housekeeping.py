"""When each periodic task of the system's worker ran last, in Redis."""

from __future__ import annotations

from datetime import UTC, datetime

from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors
from waooaw_celery.store.keys import StoreKeys

#: The field with the time of the first task that was noted.
_SINCE = "since"


class Housekeeping:
    """The times of the periodic tasks, by the clock of Redis.

    Every method raises StoreUnavailable if Redis does not answer.

    Args:
        client: client of the Redis.
        prefix: what stands before every key.
    """

    def __init__(self, client: Client, prefix: str = "") -> None:
        self._client, self._key = client, StoreKeys(prefix).housekeeping

    def note(self, task: str) -> None:
        """Note that a task has run.

        Args:
            task: its name.
        """
        with store_errors(f"note that {task} has run"):
            now = redis_time(self._client.time())
            self._client.hsetnx(self._key, _SINCE, now)
            self._client.hset(self._key, task, now)

    def runs(self) -> dict[str, datetime]:
        """Return when each task ended last, by its name."""
        with store_errors("read when the periodic tasks ran"):
            found = self._client.hgetall(self._key)
        return {name: _time(at) for name, at in found.items() if name != _SINCE}

    def since(self) -> datetime | None:
        """Return when the first task was noted, or None."""
        with store_errors("read since when the periodic tasks run"):
            at = self._client.hget(self._key, _SINCE)
        return None if at is None else _time(at)

    def now(self) -> datetime:
        """Return the time by the clock of Redis."""
        with store_errors("read the time"):
            return _time(redis_time(self._client.time()))

    def close(self) -> None:
        """Close the connections of this process."""
        self._client.close()


def _time(at: str | float) -> datetime:
    return datetime.fromtimestamp(float(at), UTC)
