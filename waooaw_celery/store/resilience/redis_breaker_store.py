"""The circuit breakers of agents in Redis: a hash with the record of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors
from waooaw_celery.store.keys import StoreKeys
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits, BreakerRecord
from waooaw_celery.store.resilience.breaker_store import BreakerStore, Stored


class RedisBreakerStore(BreakerStore):
    """The circuit breakers in Redis; a script changes a record in one step.

    Args:
        client: client of the Redis.
        limits: when a breaker opens, and for how long.
        prefix: what stands before every key.
    """

    def __init__(self, client: Client, limits: BreakerLimits, prefix: str = "") -> None:
        super().__init__(limits)
        self._client, self._key = client, StoreKeys(prefix).breakers
        text = files("waooaw_celery.store").joinpath("lua", "breaker.lua").read_text(encoding="utf-8")
        self._script = client.register_script(text)

    def close(self) -> None:
        self._client.close()

    def read(self) -> tuple[float, Mapping[str, BreakerRecord]]:
        with store_errors("read the circuit breakers"), self._client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hgetall(self._key)
            time, records = pipeline.execute()
        found = {agent: BreakerRecord.from_dict(json.loads(text)) for agent, text in records.items()}
        return redis_time(time), found

    def change(self, operation: str, agent: str, **given: Any) -> Stored:
        arguments = asdict(self.limits) | {name: value for name, value in given.items() if value is not None}
        with store_errors(f"change the circuit breaker of {agent!r}"):
            now, text, done = self._script([self._key], [operation, agent, json.dumps(arguments)])
        return Stored(float(now), BreakerRecord.from_dict(json.loads(text)) if text else None, bool(done))
