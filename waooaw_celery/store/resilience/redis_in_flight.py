"""The open requests of agents to each other in Redis: a sorted set for each two agents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files

from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors
from waooaw_celery.store.keys import StoreKeys
from waooaw_celery.store.resilience.in_flight import LEASE_SECONDS, InFlight, Pair

#: Keys that one SCAN call reads.
_SCAN_COUNT = 1000


class RedisInFlight(InFlight):
    """The open requests in Redis. The scores of a sorted set are the ends of the leases.

    Args:
        client: client of the Redis.
        limits: how many requests of one agent to another may be open, by the requested agent or ``*``.
        prefix: what stands before every key.
    """

    def __init__(self, client: Client, limits: Mapping[str, int], prefix: str = "") -> None:
        super().__init__(limits)
        self._client, self._keys = client, StoreKeys(prefix)
        folder = files("waooaw_celery.store").joinpath("lua")
        self._enter_script, self._renew_script = (
            client.register_script(folder.joinpath(name).read_text(encoding="utf-8"))
            for name in ("enter.lua", "renew.lua")
        )

    def _enter(self, pair: Pair, request: str, limit: int, ended: Iterable[str]) -> bool:
        with store_errors(f"count the open requests to {pair.target!r}"):
            return bool(self._enter_script([self._keys.in_flight(*pair)], [request, limit, LEASE_SECONDS, *ended]))

    def _leave(self, ended: Mapping[Pair, Iterable[str]]) -> None:
        with store_errors("note the end of requests"), self._client.pipeline(transaction=False) as pipeline:
            for pair, requests in ended.items():
                pipeline.zrem(self._keys.in_flight(*pair), *requests)
            pipeline.execute()

    def _renew(self, requests: Mapping[Pair, Iterable[str]]) -> None:
        with store_errors("renew the leases of open requests"):
            for pair, found in requests.items():
                self._renew_script([self._keys.in_flight(*pair)], [LEASE_SECONDS, *found])

    def _counts(self) -> dict[Pair, int]:
        counts = {}
        with store_errors("count the open requests"):
            now = redis_time(self._client.time())
            for key in self._client.scan_iter(match=self._keys.every_in_flight(), count=_SCAN_COUNT):
                if count := self._client.zcount(key, f"({now}", "+inf"):
                    counts[Pair(*self._keys.caller_and_target(key))] = int(count)
        return counts

    def _close(self) -> None:
        self._client.close()
