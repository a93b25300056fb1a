"""The script that claims grouped messages, on a real server: turns of senders, places in keys, and repairs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from uuid import uuid4

import msgpack
import pytest
from redis import Redis

from waooaw_celery.broker.redis.acks import claim_args
from waooaw_celery.broker.redis.scripts import CLAIM, CLAIM_GROUPS, RESTORE, TAKE, UNGROUP
from waooaw_celery.store.connection import store_url


class Queue:
    """A queue with the lists of two priorities, and one consumer.

    Attributes:
        asked: how many keys the script has asked for.
        cancelled: the ids of messages that were to be cancelled.
    """

    def __init__(
        self,
        client: Redis,
        *,
        fair: bool = False,
        weights: Mapping[str, float] | None = None,
        keyed: bool = False,
        most: int = 1,
        policy: str = "w",
    ) -> None:
        self.client = client
        self.name = f"queue-{uuid4().hex[:8]}"
        self.base = f"{self.name}:"
        self.lists = [self.name, f"{self.base}low"]
        self.noted = [f"{self.base}unacked", f"{self.base}index"]
        self._options = [fair, dict(weights or {}), ["work"] if keyed else []]
        self._kind = f"{most}:{policy}"
        self._calls = 0
        self._keys: dict[str, str] = {}
        self._texts: dict[str, bytes] = {}
        self.asked, self.cancelled = 0, list[str]()

    def push(
        self, *ids: str, sender: str = "a", key: str = "", low: bool = False, body: str = "", **headers: Any
    ) -> None:
        """Add messages, as any producer does."""
        for id_ in ids:
            envelope = {"from": sender, "key": key}
            named = {"task": "work", "id": id_, "retries": 0, **headers, "waooaw": envelope}
            self.client.lpush(self.lists[low], json.dumps({"body": body, "headers": named}))

    def claim(self, window: int = 1, *, reverse: bool = False, plain: bool = False) -> list[str]:
        """Claim messages, and return their ids; those of dropped ones begin with a minus."""
        while True:
            self._calls += 1
            prefix = f"tag-{self._calls}."
            lists = self.lists[::-1] if reverse else self.lists
            names = [*self.noted, f"{self.base}dead", f"{self.base}bell", *lists]
            groups = msgpack.packb([*self._options, self._keys, reverse])
            args = claim_args(window, prefix, (self.name,), 100, None, (), b"" if plain else groups)
            reply = (CLAIM if plain else CLAIM_GROUPS)(self.client, names, [*args, 0])
            self._keys, found = {}, list[str]()
            for first, second, raw in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
                if first == 0 and second == 2:
                    self.asked += 1
                    key = json.loads(raw)["headers"]["waooaw"]["key"]
                    digest = hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()
                    self._keys[hashlib.sha1(raw, usedforsecurity=False).hexdigest()] = (
                        f"{self._kind}:{digest}" if key else "::"
                    )
                elif first == 0 and second == 3:
                    self.cancelled.append(raw.decode())
                else:
                    id_ = json.loads(raw)["headers"]["id"]
                    found.append(f"-{id_}" if second == 2 else id_)
                    self._texts[id_] = f"{prefix}{len(found)}".encode()
            if found or not self._keys:
                return found

    def tag(self, id_: str) -> str:
        """Return the tag under which a message was claimed last."""
        return self._texts[id_].decode()

    def acknowledge(self, *ids: str, retried: bool = False) -> None:
        """Acknowledge messages; they may be those that are tried again."""
        commands = [("SADD", f"{self.noted[0]}:retried", self.tag(id_)) for id_ in ids if retried]
        words: list[Any] = [len(commands), *(word for each in commands for word in (len(each), *each))]
        args = claim_args(0, "", (), 0, None) + words + [self.tag(id_) for id_ in ids]
        CLAIM(self.client, [*self.noted, f"{self.base}dead"], args)

    def restore(self, id_: str) -> None:
        """Put a claimed message back to the front, as the end of its lease does."""
        keys = [*self.noted, self.lists[0], f"{self.base}bell"]
        assert RESTORE(self.client, keys, [self.tag(id_), self.name, "front", "", ""]) == 1

    def handle(self, count: int) -> list[str]:
        """Claim and acknowledge messages one by one, and return their ids."""
        handled: list[str] = []
        for _ in range(count):
            for id_ in self.claim():
                self.acknowledge(id_.removeprefix("-"))
                handled.append(id_)
        return handled

    def left(self) -> list[str]:
        """Return the keys of the queue that are left."""
        return sorted(key.decode() for key in self.client.scan_iter(f"{self.name}*"))


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with closing(Redis.from_url(store_url(None, redis_url))) as client:
        yield client


# --- senders


@pytest.mark.parametrize(("plain", "most"), [(False, 2), (True, 5000)])
def test_a_message_waits_for_two_of_another_sender_at_most(client: Redis, plain: bool, most: int) -> None:
    """Although 5,000 of it wait. In a plain queue, it waits for all of them."""
    queue = Queue(client, fair=True)
    queue.push(*(f"a{n}" for n in range(5000)), sender="a")
    queue.handle(10) if not plain else None
    queue.push("b0", sender="b")
    found: list[str] = []
    while "b0" not in found:
        found += queue.claim(1 if not plain else 500, plain=plain)
    position = found.index("b0")
    assert position <= most
    assert plain == (position == 5000)


def test_a_sender_of_single_messages_does_not_hold_up_the_others(client: Redis) -> None:
    """It sends the next one when one is handled: it gets every second turn."""
    queue = Queue(client, fair=True)
    queue.push(*(f"a{n}" for n in range(50)), sender="a")
    handled: list[str] = []
    for n in range(20):
        queue.push(f"b{n}", sender="b")
        while f"b{n}" not in handled:
            handled += queue.handle(1)
    senders = Counter(id_[0] for id_ in handled)
    assert senders["b"] == 20
    assert 18 <= senders["a"] <= 21


@pytest.mark.parametrize("weight", [3, 0.25])
def test_turns_follow_weights(client: Redis, weight: float) -> None:
    """The messages of each sender keep their order."""
    queue = Queue(client, fair=True, weights={"b": weight})
    for sender in "abc":
        queue.push(*(f"{sender}{n}" for n in range(100)), sender=sender)
    handled = queue.handle(90)
    senders = Counter(id_[0] for id_ in handled)
    assert senders["a"] == pytest.approx(senders["c"], abs=1)
    assert senders["b"] == pytest.approx(senders["a"] * weight, abs=3)
    for sender in "abc":
        own = [id_ for id_ in handled if id_[0] == sender]
        assert own == [f"{sender}{n}" for n in range(len(own))]


def test_the_urgent_come_first_but_not_in_a_reversed_claim(client: Redis) -> None:
    """That is how a share of claims goes to the least urgent."""
    queue = Queue(client, fair=True)
    queue.push("u0", "u1", sender="a")
    queue.push("l0", "l1", sender="b", low=True)
    assert queue.claim() == ["u0"]
    assert queue.claim(reverse=True) == ["l0"]
    assert queue.claim(5) == ["u1", "l1"]


def test_a_restored_message_is_the_next_of_its_queue(client: Redis) -> None:
    """Also before those of other senders."""
    queue = Queue(client, fair=True)
    queue.push("a0", "a1", sender="a")
    queue.push("b0", sender="b")
    assert queue.claim() == ["a0"]
    queue.restore("a0")
    assert queue.handle(3) == ["a0", "b0", "a1"]


# --- keys


def test_messages_of_a_key_follow_each_other(client: Redis) -> None:
    """A message with another key, or without one, overtakes them."""
    queue = Queue(client, keyed=True)
    queue.push("a0", "a1", "a2", key="k")
    queue.push("b0", key="other")
    queue.push("c0")
    assert queue.claim(10) == ["a0", "b0", "c0"]
    assert queue.claim(10) == []
    queue.acknowledge("a0")
    assert queue.claim(10) == ["a1"]
    queue.acknowledge("a1", "b0", "c0")
    assert queue.handle(1) == ["a2"]
    assert not [key for key in queue.left() if not key.endswith("bell")]


def test_each_key_is_asked_for_once(client: Redis) -> None:
    """Also where many messages wait."""
    queue = Queue(client, keyed=True)
    queue.push(*(f"a{n}" for n in range(600)), key="k")
    assert queue.handle(600) == [f"a{n}" for n in range(600)]
    assert queue.asked == 600


def test_few_large_messages_are_read_at_once(client: Redis) -> None:
    """The server does nothing else meanwhile, and the consumer gets them to find their keys."""
    queue = Queue(client, keyed=True)
    queue.push(*(f"a{n}" for n in range(40)), key="k", body="x" * 500_000)
    assert queue.claim() == ["a0"]
    assert queue.asked <= 8
    queue.acknowledge("a0")
    assert queue.handle(39) == [f"a{n}" for n in range(1, 40)]


def test_a_restored_message_keeps_its_place_in_its_key(client: Redis) -> None:
    """Those that wait for it do not overtake it."""
    queue = Queue(client, keyed=True)
    queue.push("a0", "a1", key="k")
    assert queue.claim(10) == ["a0"]
    queue.restore("a0")
    queue.push("a2", key="k")
    assert queue.handle(3) == ["a0", "a1", "a2"]


@pytest.mark.parametrize("copy_first", [True, False])
def test_the_next_attempt_keeps_its_place_in_its_key(client: Redis, copy_first: bool) -> None:
    """Whether it is sorted before or after the last one is acknowledged."""
    queue = Queue(client, keyed=True)
    queue.push("a0", "a1", key="k")
    assert queue.claim(10) == ["a0"]
    tag = queue.tag("a0")
    queue.push("a2", key="k")
    queue.push("a0", key="k", retries=1)
    if copy_first:
        assert queue.claim(10) == []
    queue._texts["a0"] = tag.encode()
    queue.acknowledge("a0", retried=True)
    assert queue.handle(3) == ["a0", "a1", "a2"]


def test_a_message_whose_key_is_busy_is_dropped(client: Redis) -> None:
    """It is claimed, so that its worker can say so; it takes no place."""
    queue = Queue(client, keyed=True, policy="d")
    queue.push("a0", "a1", key="k")
    queue.push("b0", key="other")
    assert queue.claim(10) == ["a0", "-a1", "b0"]
    queue.acknowledge("a1")
    queue.push("a2", key="k")
    assert queue.claim(10) == ["-a2"]
    queue.acknowledge("a0", "a2")
    queue.push("a3", key="k")
    assert queue.claim(10) == ["a3"]


def test_a_message_cancels_the_one_before_it(client: Redis) -> None:
    """The running one is cancelled, those that wait are dropped, and the newest is handled."""
    queue = Queue(client, keyed=True, policy="c")
    queue.push("a0", key="k")
    assert queue.claim(10) == ["a0"]
    queue.push("a1", "a2", key="k")
    assert queue.claim(10) == []
    assert set(queue.cancelled) == {"a0"}
    queue.acknowledge("a0")
    assert queue.handle(2) == ["-a1", "a2"]


def test_messages_go_on_when_those_before_them_were_removed_by_hand(client: Redis) -> None:
    """Somebody has deleted the unacknowledged messages."""
    queue = Queue(client, keyed=True)
    queue.push("a0", "a1", "a2", key="k")
    assert queue.claim(10) == ["a0"]
    assert queue.claim(10) == []
    client.delete(*queue.noted)
    assert queue.claim(10) == []  # it finds that the key has no holder
    assert queue.claim(10) == ["a1"]


def test_messages_taken_out_of_the_groups_free_their_places(client: Redis) -> None:
    """Those of other senders go on."""
    queue = Queue(client, keyed=True)
    queue.push("a0", key="k")
    queue.push("b0", sender="b", key="k")
    queue.push("a1", key="k")
    assert queue.claim(10) == ["a0"]
    assert queue.claim(10) == []
    queue.acknowledge("a0")  # b0 has its place now, and is not claimed yet
    for list_ in client.smembers(f"{queue.base}sublists"):
        TAKE(client, [*queue.noted, list_, f"{queue.base}bell"], [0, 100, f"t{uuid4().hex}.", queue.name, "b"])
    assert queue.claim(10) == ["a1"]


@pytest.mark.parametrize("fair", [False, True])
def test_grouped_messages_go_back_in_order(client: Redis, fair: bool) -> None:
    """To a consumer that does not group them: first the restored, then those that waited for keys."""
    queue = Queue(client, keyed=True, fair=fair)
    queue.push("a0", "a1", "a2", key="k")
    queue.push("b0", "b1")
    assert queue.claim(2) == ["a0", "b0"]
    queue.restore("a0")
    assert UNGROUP(client, [f"{queue.base}bell", *queue.lists], [100]) == 4
    found = queue.claim(10, plain=True)
    assert found[0] == "a0"
    assert [id_ for id_ in found if id_[0] == "a"] == ["a0", "a1", "a2"]
    assert "b1" in found


def test_flows_of_senders_and_of_none_are_both_emptied(client: Redis) -> None:
    """While workers with and without fairness consume one queue."""
    fair, unfair = Queue(client, fair=True, keyed=True), Queue(client, keyed=True)
    unfair.name, unfair.base, unfair.lists, unfair.noted = fair.name, fair.base, fair.lists, fair.noted
    for turn in range(4):
        fair.push(f"a{turn}", f"b{turn}", sender="a")
        fair.push(f"c{turn}", sender="c")
        first, second = (fair, unfair) if turn % 2 else (unfair, fair)
        found = first.handle(1)
        found += second.handle(2)
        assert sorted(found) == sorted([f"a{turn}", f"b{turn}", f"c{turn}"])
