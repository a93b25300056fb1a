"""RedisStorage without a server: what it sends, how it reads replies, and when it stops asking.

tests/integration/test_limits_storage.py tests the same storage, with its script, on real servers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fnmatch import fnmatch
from types import TracebackType
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from waooaw_celery import MessageType, Priority, RateLimiter
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.limits import redis as redis_module
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.redis import PAUSE_SECONDS, RedisStorage
from waooaw_celery.limits.rules import Demand, Quota, Rule, demands_by_scope
from waooaw_celery.limits.storage import Refusal


class ScriptedRedis:
    """The commands that RedisStorage uses, on a dict of hashes, with prepared replies of the script."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.calls: list[tuple[list[str], list[Any]]] = []
        self.data: dict[str, dict[str, Any]] = {}
        self.closed = False

    def register_script(self, text: str) -> Any:
        assert "redis.call" in text
        return self.run_script

    def run_script(self, keys: list[str], args: list[Any]) -> Any:
        self.calls.append((keys, args))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def hget(self, key: str, field: str) -> Any:
        return self.data.get(key, {}).get(field)

    def hset(self, key: str, mapping: dict[str, Any]) -> None:
        self.data[key] = dict(mapping)

    def delete(self, key: str) -> None:
        self.data.pop(key, None)

    def scan_iter(self, match: str, count: int) -> Iterator[str]:
        assert count >= 100
        return iter([key for key in self.data if fnmatch(key, match)])

    def pipeline(self) -> ScriptedRedis:
        return self

    def execute(self) -> None:
        """Do nothing: commands run at once."""

    def __enter__(self) -> ScriptedRedis:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.closed = True


def storage_on(client: Any, now: int | None = None) -> RedisStorage:
    return RedisStorage(client, None if now is None else lambda: now)


def test_a_decision_sends_the_quota_key_and_a_counter_for_each_scope() -> None:
    """The keys of an agent share its hash tag; rules travel as limit, microseconds in a step, and burst."""
    client = ScriptedRedis([], [])
    quota = parse_quota("100/hour burst 20; 5/minute of query")
    demands = demands_by_scope([("boss", MessageType.QUERY, Priority.URGENT, 2), (None, None, Priority.LOW, 1)])
    assert storage_on(client, 17).decide("a", demands, quota, 250, charge=True) is None
    assert storage_on(client).decide("a", demands, quota, 250, charge=False) is None
    hour, minute = struct.pack(">III", 100, 144_000, 20), struct.pack(">III", 5, 2400, 0)
    keys = ["waooaw:quota:{a}", "waooaw:limit:{a}:", "waooaw:limit:{a}:to:boss", "waooaw:limit:{a}:of:query"]
    assert client.calls == [
        (keys, ["charge", 17, 250, b"3 1 " + hour, b"2 0 ", b"2 0 " + minute]),
        (keys, ["check", "", 250, b"3 1 " + hour, b"2 0 ", b"2 0 " + minute]),
    ]


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        ([36, 1, 100, 144_000, 20], Refusal(Rule(100, 3600, 20), 36)),
        ([0, 2, 7, 2400, 0], Refusal(Rule(7, 60, to="x"), 0)),
        ([-1, 3, 7, 2400, 0], Refusal(Rule(7, 60, of=MessageType.QUERY), None)),
    ],
)
def test_a_refusal_names_the_rule_and_the_wait(reply: list[int], refusal: Refusal) -> None:
    """Scopes are counted from 1; a wait of -1 means never."""
    demands = demands_by_scope([("x", MessageType.QUERY, Priority.LOW, 1)])
    assert storage_on(ScriptedRedis(reply)).decide("a", demands, Quota(), 0, charge=True) == refusal


def test_the_status_asks_for_all_messages_first_and_returns_what_was_asked() -> None:
    """The script needs the scope of all messages; its status is left out unless it is asked for."""
    replies = [[1, 10, 40, 0, 3, 0, 0], [2, 100, 144_000, 20, 4, 2, -1], [2, 5, 2400, 0, 5, 0, 1_500_000]]
    client = ScriptedRedis(replies, replies)
    found = storage_on(client).status("a", ["to:x"], Quota(), 0)
    assert [(one.scope, one.rule, one.used, one.remaining, one.retry_after) for one in found] == [
        ("to:x", "100/hour burst 20 to x", 4, 2, float("inf")),
        ("to:x", "5/minute to x", 5, 0, 1.5),
    ]
    assert client.calls[0][1][3:] == [b"1 1 ", b"1 1 "]
    assert client.calls[0][0][1:] == ["waooaw:limit:{a}:", "waooaw:limit:{a}:to:x"]
    everything = storage_on(client).status("a", ["to:x", ""], Quota(), 0)
    assert client.calls[1][0] == client.calls[0][0]
    assert [(one.scope, one.limit) for one in everything] == [("", 10), ("to:x", 100), ("to:x", 5)]
    assert everything[0].retry_after == 0


def test_a_quota_is_stored_as_text_and_as_rules_by_scope() -> None:
    """It is read back by its text, and removed with None."""
    client = ScriptedRedis()
    storage = storage_on(client)
    quota = parse_quota("3/hour; 2/minute burst 1 to boss")
    assert storage.quota("a") is None
    storage.set_quota("a", quota)
    assert client.data == {
        "waooaw:quota:{a}": {
            "text": "3/hour; 2/minute burst 1 to boss",
            "": struct.pack(">III", 3, 144_000, 0),
            "to:boss": struct.pack(">III", 2, 2400, 1),
        }
    }
    storage.set_quota("b", Quota())
    assert storage.quota("a") == quota
    assert storage.quotas() == {"a": quota, "b": Quota()}
    storage.set_quota("a", None)
    assert storage.quotas() == {"b": Quota()}


def test_counters_are_listed_and_deleted_by_agent() -> None:
    """Scopes contain a colon themselves, and one agent's name may start with another's."""
    client = ScriptedRedis()
    client.data = {f"waooaw:limit:{{{agent}}}:{scope}": {} for agent in ("a", "ab") for scope in ("", "to:x")}
    storage = storage_on(client)
    assert sorted(storage.counted_scopes()) == [("a", ""), ("a", "to:x"), ("ab", ""), ("ab", "to:x")]
    storage.reset("a")
    assert sorted(storage.counted_scopes()) == [("ab", ""), ("ab", "to:x")]
    storage.close()
    assert client.closed


def test_a_redis_that_does_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost connection no call goes out for two seconds; other errors do not stop the next call."""
    now = [1000.0]
    monkeypatch.setattr(redis_module.time, "monotonic", lambda: now[0])
    client = ScriptedRedis(ResponseError("busy"), RedisConnectionError("refused"), [], [])
    limiter = RateLimiter(storage_on(client), "1/hour")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="check the rate limit of 'a'"):
            limiter.acquire("a")
    now[0] += PAUSE_SECONDS - 0.1
    with pytest.raises(StoreUnavailable, match="is not known: Redis did not answer in the last 2 s"):
        limiter.acquire("a")
    assert len(client.calls) == 2
    now[0] += 0.1
    limiter.acquire("a")
    assert len(client.calls) == 3


def test_rules_are_packed_once() -> None:
    """The packed form of the rules is kept for the next decision."""
    client = ScriptedRedis([], [])
    storage = storage_on(client)
    for _ in range(2):
        storage.decide("a", [Demand("", 1, 1)], parse_quota("1/hour"), 0, charge=True)
    first, second = (args[3] for _, args in client.calls)
    assert first == second == b"1 1 " + struct.pack(">III", 1, 144_000, 0)
