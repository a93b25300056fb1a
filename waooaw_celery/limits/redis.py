"""Counts and quotas in Redis or Valkey, shared by all processes; each decision is one round trip.

The keys of an agent use its name as their hash tag, so that Redis Cluster keeps them on one node. Counters expire,
and the server's clock is the time. The script is called by its digest and sent again to a server that lacks it.
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
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.memory import rule_status
from waooaw_celery.limits.rules import ALL_MESSAGES, STEPS, Demand, Quota, Rule, rule_for_scope
from waooaw_celery.limits.storage import LimitStorage, Refusal, RuleStatus
from waooaw_celery.store.connection import Client, store_errors
from waooaw_celery.store.keys import StoreKeys

#: The field of a quota's hash with its text; the other fields are its scopes.
_TEXT = "text"
_RULE = struct.Struct(">III")
#: The script, which ``lua/decide.lua`` describes.
DECIDE = files(__package__).joinpath("lua", "decide.lua").read_text(encoding="utf-8")
#: Seconds that one decision may take.
DEADLINE_SECONDS = 1.0
#: Seconds during which a Redis that did not answer is not asked again.
PAUSE_SECONDS = 2.0
#: Keys that one SCAN call reads.
_SCAN_COUNT = 1000


class RedisStorage(LimitStorage):
    """Counts for all processes that use the same Redis.

    Args:
        client: Connection to Redis.
        clock: Returns the time in microseconds; None: the server's clock.
        prefix: What stands before every key.
    """

    def __init__(self, client: Client, clock: Callable[[], int] | None = None, prefix: str = "") -> None:
        self._client = client
        self._keys = StoreKeys(prefix)
        self._clock = clock
        self._script = client.register_script(DECIDE)
        self._packed_rules: dict[tuple[Rule, ...], bytes] = {}
        self._paused_until = 0.0

    @property
    def client(self) -> Client:
        """The connection to Redis."""
        return self._client

    def decide(
        self, agent: str, demands: Sequence[Demand], default: Quota, reserve: int, *, charge: bool
    ) -> Refusal | None:
        return self.refusal(
            demands, self._run_script("charge" if charge else "check", agent, demands, default, reserve)
        )

    def refusal(self, demands: Sequence[Demand], reply: Sequence[Any]) -> Refusal | None:
        """Return the refusal that a reply of the script says, or None: the messages pass.

        Args:
            demands: The messages of the call.
            reply: The script's reply to "charge" or "check".
        """
        if not reply:
            return None
        wait, number, *rule = reply
        return Refusal(_rule(demands[number - 1].scope, *rule), None if wait < 0 else wait)

    def status(self, agent: str, scopes: Sequence[str], default: Quota, reserve: int) -> list[RuleStatus]:
        # The scope of all messages always comes first: its key shows the script where the names of scopes begin.
        others = [scope for scope in scopes if scope != ALL_MESSAGES]
        demands = [Demand(scope, 1, 1) for scope in [ALL_MESSAGES, *others]]
        statuses = []
        for number, *rule, used, level, wait in self._run_script("status", agent, demands, default, reserve):
            scope = demands[number - 1].scope
            if scope in scopes:
                wait_us = None if wait < 0 else wait
                statuses.append(rule_status(agent, scope, _rule(scope, *rule), used, level, wait_us))
        return statuses

    def counted_scopes(self) -> Iterator[tuple[str, str]]:
        for key in self._scan(self._keys.every_counter()):
            yield self._keys.agent_and_scope(key)

    def reset(self, agent: str) -> None:
        for key in self._scan(self._keys.every_counter(agent)):
            with store_errors(f"reset the rate limit of {agent!r}"):
                self._client.delete(key)

    def quota(self, agent: str) -> Quota | None:
        with store_errors(f"read the quota of {agent!r}"):
            text = self._client.hget(self._keys.quota(agent), _TEXT)
        return None if text is None else parse_quota(text)

    def quotas(self) -> dict[str, Quota]:
        agents = [self._keys.agent_of_quota(key) for key in self._scan(self._keys.every_quota())]
        quotas = {agent: self.quota(agent) for agent in sorted(agents)}
        return {agent: quota for agent, quota in quotas.items() if quota is not None}

    def set_quota(self, agent: str, quota: Quota | None) -> None:
        with store_errors(f"set the quota of {agent!r}"), self._client.pipeline() as pipeline:
            pipeline.delete(self._keys.quota(agent))
            if quota is not None:
                rules = {scope: self._pack(rules) for scope, rules in quota.rules_by_scope.items()}
                pipeline.hset(self._keys.quota(agent), mapping={_TEXT: str(quota), **rules})
            pipeline.execute()

    def close(self) -> None:
        self._client.close()

    def script_arguments(
        self, mode: str, agent: str, demands: Sequence[Demand], default: Quota, reserve: int
    ) -> tuple[list[str], list[Any]]:
        """Return the keys and the arguments of a call of the script; ``lua/decide.lua`` describes them."""
        keys = [self._keys.quota(agent)]
        args: list[Any] = [mode, self._clock() if self._clock else "", reserve]
        for demand in demands:
            rules = self._pack(default.rules_for(demand.scope))
            keys.append(self._keys.counter(agent, demand.scope))
            args.append(b"%d %d %b" % (demand.n, demand.non_urgent, rules))
        return keys, args

    def _run_script(self, mode: str, agent: str, demands: Sequence[Demand], default: Quota, reserve: int) -> Any:
        if time.monotonic() < self._paused_until:
            raise StoreUnavailable(
                f"the rate limit of {agent!r} is not known: Redis did not answer in the last {PAUSE_SECONDS:.0f} s"
            )
        keys, args = self.script_arguments(mode, agent, demands, default, reserve)
        with store_errors(f"check the rate limit of {agent!r}"):
            try:
                return self._script(keys, args)
            except (RedisConnectionError, RedisTimeoutError):  # spare the next callers the same deadline
                self._paused_until = time.monotonic() + PAUSE_SECONDS
                raise

    def _scan(self, pattern: str) -> Iterator[str]:
        with store_errors("list the rate limits"):
            yield from self._client.scan_iter(match=pattern, count=_SCAN_COUNT)

    def _pack(self, rules: tuple[Rule, ...]) -> bytes:
        """Return rules in the script's binary form."""
        packed = self._packed_rules.get(rules)
        if packed is None:
            packed = b"".join(_RULE.pack(rule.limit, rule.step_us, rule.burst or 0) for rule in rules)
            self._packed_rules[rules] = packed
        return packed


def _rule(scope: str, limit: int, step_us: int, burst: int) -> Rule:
    return rule_for_scope(scope, limit, step_us * STEPS // 1_000_000, burst or None)
