"""Counts and quotas in Redis or Valkey, seen by all processes: one decision is one round trip.

All keys of an agent have its name as their hash tag, so that Redis Cluster keeps them together. What is counted
expires when it is over; the server's clock counts. A script is called by its digest, and sent again to a server
that does not know it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.limits.grammar import read_quota
from waooaw_celery.limits.memory import rule_status
from waooaw_celery.limits.rules import ALL, STEPS, Demand, Quota, Rule, rule_in
from waooaw_celery.limits.storage import LimitStorage, Refusal, RuleStatus
from waooaw_celery.store.connection import Client, store_errors

_COUNTED = "waooaw:limit:"
_QUOTA = "waooaw:quota:"
#: The field of a quota that says it in words; the others are its scopes.
_TEXT = "text"
_RULE = struct.Struct(">III")
_SCRIPT = files(__package__).joinpath("lua", "decide.lua").read_text(encoding="utf-8")
#: Seconds that a decision may take.
DEADLINE = 1.0
#: Seconds for which a Redis that did not answer is not asked again.
REST = 2.0
#: Keys that one step of a listing looks at.
_LOOK = 1000


class RedisStorage(LimitStorage):
    """Counts for all processes that reach this Redis.

    Args:
        client: connection to it.
        clock: tells the time in microseconds; None: the server does.
    """

    def __init__(self, client: Client, clock: Callable[[], int] | None = None) -> None:
        self._client = client
        self._clock = clock
        self._script = client.register_script(_SCRIPT)
        self._packed: dict[tuple[Rule, ...], bytes] = {}
        self._rest_until = 0.0

    def decide(
        self, agent: str, demands: Sequence[Demand], default: Quota, reserve: int, *, charge: bool
    ) -> Refusal | None:
        found = self._ask("charge" if charge else "check", agent, demands, default, reserve)
        if not found:
            return None
        wait, place, *rule = found
        return Refusal(_rule(demands[place - 1].scope, *rule), None if wait < 0 else wait)

    def status(self, agent: str, scopes: Sequence[str], default: Quota, reserve: int) -> list[RuleStatus]:
        # The first one is that of all messages in any case: its key shows the script where a scope's name begins.
        demands = [Demand(scope, 1, 1) for scope in [ALL, *(scope for scope in scopes if scope != ALL)]]
        statuses = []
        for place, *rule, used, level, wait in self._ask("status", agent, demands, default, reserve):
            scope = demands[place - 1].scope
            if scope in scopes:
                waits = None if wait < 0 else wait
                statuses.append(rule_status(agent, scope, _rule(scope, *rule), used, level, waits))
        return statuses

    def counted(self) -> Iterator[tuple[str, str]]:
        for key in self._keys(f"{_COUNTED}{{*"):
            agent, _, scope = key.removeprefix(f"{_COUNTED}{{").partition("}:")
            yield agent, scope

    def reset(self, agent: str) -> None:
        for key in self._keys(_counter(agent, "*")):
            with store_errors(f"reset the rate limit of {agent!r}"):
                self._client.delete(key)

    def quota(self, agent: str) -> Quota | None:
        with store_errors(f"read the quota of {agent!r}"):
            text = self._client.hget(_quota(agent), _TEXT)
        return None if text is None else read_quota(text)

    def quotas(self) -> dict[str, Quota]:
        agents = [key.removeprefix(f"{_QUOTA}{{").removesuffix("}") for key in self._keys(f"{_QUOTA}{{*")]
        found = {agent: self.quota(agent) for agent in sorted(agents)}
        return {agent: quota for agent, quota in found.items() if quota is not None}

    def set_quota(self, agent: str, quota: Quota | None) -> None:
        with store_errors(f"set the quota of {agent!r}"), self._client.pipeline() as pipeline:
            pipeline.delete(_quota(agent))
            if quota is not None:
                rules = {scope: self._pack(rules) for scope, rules in quota.scopes.items()}
                pipeline.hset(_quota(agent), mapping={_TEXT: str(quota), **rules})
            pipeline.execute()

    def close(self) -> None:
        self._client.close()

    def call(
        self, mode: str, agent: str, demands: Sequence[Demand], default: Quota, reserve: int
    ) -> tuple[list[str], list[Any]]:
        """Return the keys and the arguments with which the script is called."""
        keys = [_quota(agent)]
        args: list[Any] = [mode, self._clock() if self._clock else "", reserve]
        for demand in demands:
            rules = self._pack(default.of_scope(demand.scope))
            keys.append(_counter(agent, demand.scope))
            args.append(b"%d %d %b" % (demand.n, demand.ordinary, rules))
        return keys, args

    def _ask(self, mode: str, agent: str, demands: Sequence[Demand], default: Quota, reserve: int) -> Any:
        if time.monotonic() < self._rest_until:
            raise StoreUnavailable(f"the rate limit of {agent!r} is not known: Redis did not answer a moment ago")
        keys, args = self.call(mode, agent, demands, default, reserve)
        with store_errors(f"check the rate limit of {agent!r}"):
            try:
                return self._script(keys, args)
            except (RedisConnectionError, RedisTimeoutError):  # others need not wait as long for nothing
                self._rest_until = time.monotonic() + REST
                raise

    def _keys(self, pattern: str) -> Iterator[str]:
        with store_errors("list the rate limits"):
            yield from self._client.scan_iter(match=pattern, count=_LOOK)

    def _pack(self, rules: tuple[Rule, ...]) -> bytes:
        """Return rules as the script reads them."""
        packed = self._packed.get(rules)
        if packed is None:
            packed = b"".join(_RULE.pack(rule.limit, rule.step, rule.burst or 0) for rule in rules)
            self._packed[rules] = packed
        return packed


def _rule(scope: str, limit: int, step: int, burst: int) -> Rule:
    return rule_in(scope, limit, step * STEPS // 1_000_000, burst or None)


def _quota(agent: str) -> str:
    return f"{_QUOTA}{{{agent}}}"


def _counter(agent: str, scope: str) -> str:
    return f"{_COUNTED}{{{agent}}}:{scope}"
