"""The limit of open requests from one agent to another: in Redis, SQLite and PostgreSQL, and with real agents."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from support import PROBE_FOLDER, Broker, until

from waooaw_celery import RequestResponseHandler, aio
from waooaw_celery.agents import TooManyInFlight
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.resilience.in_flight import LedgerInFlight
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.store.resilience import in_flight as module
from waooaw_celery.store.resilience.in_flight import InFlight, Pair
from waooaw_celery.store.resilience.redis_in_flight import RedisInFlight

#: The limits of the tests of the stores.
LIMITS = {"writer": 3, "*": 5}


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[Callable[..., InFlight]]:
    """Return a factory of counts that share only the store, as processes do."""
    made: list[InFlight] = []
    databases: list[Database] = []
    prefix = f"{tmp_path.name}:"

    def _make(limits: dict[str, int] = LIMITS) -> InFlight:
        if request.param == "redis":
            made.append(RedisInFlight(connect(store_url(redis_url)), limits, prefix))
            return made[-1]
        url = (
            f"sqlite:///{tmp_path / 'ledger.sqlite'}"
            if request.param == "sqlite"
            else request.getfixturevalue("postgres_url")
        )
        databases.append(Database(database_url(url)))
        schema.upgrade(databases[-1])
        made.append(LedgerInFlight(databases[-1], limits))
        return made[-1]

    yield _make
    for each in made:
        each.close()
    for database in databases:
        database.close()


def own(counts: InFlight, caller: str) -> dict[Pair, int]:
    """Return the stored counts of a caller."""
    return {pair: count for pair, count in counts.counts().items() if pair.caller == caller}


def test_the_limit_holds_for_all_processes_together(make: Callable[..., InFlight], tmp_path: Path) -> None:
    """Forty threads of four processes try at the same moment: three get a place. Another caller has its own."""
    processes, caller = [make() for _ in range(4)], f"boss-{tmp_path.name}"
    barrier = Barrier(40)

    def enter(number: int) -> bool:
        barrier.wait(30)
        try:
            return processes[number % 4].enter(caller, "writer", str(number)) is not None
        except TooManyInFlight:
            return False

    with ThreadPoolExecutor(40) as pool:
        assert sum(pool.map(enter, range(40))) == 3
    assert own(processes[0], caller) == {Pair(caller, "writer"): 3}
    assert processes[0].enter(f"{caller}-2", "writer", "a") is not None
    assert processes[0].enter(caller, "reader", "b") is not None


def test_a_place_is_free_when_its_request_has_ended(make: Callable[..., InFlight], tmp_path: Path) -> None:
    """At once in the same process, and soon in others. To leave twice frees one place."""
    one, other, caller = make({"*": 1}), make({"*": 1}), f"boss-{tmp_path.name}"
    for number in range(50):
        place = one.enter(caller, "writer", str(number))
        assert place is not None
        with pytest.raises(TooManyInFlight, match="has 1 open requests to 'writer'") as raised:
            other.enter(caller, "writer", "x")
        one.leave(place)
        one.leave(place)
    assert (raised.value.agent, raised.value.caller, raised.value.limit) == ("writer", caller, 1)
    assert 0 < raised.value.retry_after <= 1

    def is_free() -> bool:
        try:
            return other.enter(caller, "writer", "y") is not None
        except TooManyInFlight:
            return False

    until(is_free, "the free place")


def test_without_a_limit_nothing_is_counted(make: Callable[..., InFlight], tmp_path: Path) -> None:
    """Neither without limits nor for an agent that has none."""
    caller = f"boss-{tmp_path.name}"
    for limits in ({}, {"reader": 1}):
        counts = make(limits)
        assert all(counts.enter(caller, "writer", str(number)) is None for number in range(10))
        assert own(counts, caller) == {}


def test_the_leases_of_open_requests_are_renewed(
    make: Callable[..., InFlight], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread renews them all: with leases of a second, the places are still taken after two and a half."""
    for name in ("waooaw_celery.store.resilience.redis_in_flight", "waooaw_celery.ledger.resilience.in_flight"):
        monkeypatch.setattr(f"{name}.LEASE_SECONDS", 1.0)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.2)
    counts, caller = make(), f"boss-{tmp_path.name}"
    places = [counts.enter(caller, "writer", str(number)) for number in range(3)]
    ends_at = time.monotonic() + 2.5
    until(lambda: time.monotonic() > ends_at, "some leases")
    assert own(counts, caller) == {Pair(caller, "writer"): 3}
    for place in places:
        assert place is not None
        counts.leave(place)
    until(lambda: own(counts, caller) == {}, "the end of the requests")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_the_places_of_a_killed_process_are_free_after_a_lease(
    valkey_broker: Broker, tmp_path: Path, kind: str
) -> None:
    """Fifteen seconds; until then they count."""
    agent = valkey_broker.name()
    settings: dict[str, Any] = {"waooaw_max_in_flight": {agent: 3}, "waooaw_agents": [agent]}
    settings |= {"broker_url": valkey_broker.url, "result_backend": valkey_broker.redis_url}
    if kind == "sqlite":  # and no Redis
        settings |= {"broker_url": "amqp://nowhere", "result_backend": "rpc://"}
        settings["waooaw_database_url"] = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    app = valkey_broker.app(**settings)
    if kind == "sqlite":
        schema.upgrade(app.database)
    command = [sys.executable, "in_flight_caller.py", json.dumps(settings), agent, "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROBE_FOLDER) as caller:
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "entered\n"
        finally:
            caller.kill()
    killed_at = time.monotonic()
    assert app.in_flight.counts()[Pair("boss", agent)] == 3
    with pytest.raises(TooManyInFlight):
        app.in_flight.enter("boss", agent, "mine")
    until(lambda: Pair("boss", agent) not in app.in_flight.counts(), "the end of the leases", 40)
    assert time.monotonic() - killed_at < module.LEASE_SECONDS + 5
    assert app.in_flight.enter("boss", agent, "mine") is not None
    app.close()


def test_requests_are_refused_at_the_limit(broker: Broker, probe: str) -> None:
    """Of five coroutines, two get through, and later requests too."""
    app = broker.app(waooaw_max_in_flight={probe: 2})
    requests = aio.RequestResponseHandler(app)

    async def ask() -> list[Any]:
        calls = [requests.request(probe, "nap", {"seconds": 2}, timeout=30) for _ in range(5)]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(ask())
    refused = [each for each in outcomes if isinstance(each, TooManyInFlight)]
    assert len(refused) == 3, outcomes
    blocking = RequestResponseHandler(app)
    for _ in range(5):
        assert blocking.request(probe, "echo", {"value": 1}, timeout=30) == 1
    with blocking.stream(probe, "count", {"to": 3}, timeout=30) as stream:
        assert len(list(stream)) == 3
    until(lambda: not any(pair.target == probe for pair in app.in_flight.counts()), "the end of all requests")
    app.close()


def test_requests_that_end_otherwise_free_their_places(broker: Broker) -> None:
    """A timeout, a coroutine that is cancelled, a stream that is closed, a request that is not sent."""
    agent = broker.name()
    app = broker.app(waooaw_max_in_flight={"*": 1}, waooaw_agents=[agent], waooaw_breaker_failures=0)
    requests, awaited = RequestResponseHandler(app), aio.RequestResponseHandler(app)
    for _ in range(2):
        assert not requests.send_request(agent, "work", timeout=1).ok

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited.request(agent, "work", timeout=30), 1.0)

    asyncio.run(cancel())
    until(lambda: app.in_flight.counts().get(Pair("tests", agent)) is None, "the cancelled coroutine")
    with requests.stream(agent, "work", timeout=30), pytest.raises(TooManyInFlight):
        requests.request(agent, "work", timeout=30)
    with pytest.raises(Exception, match="is a set"):
        requests.request(agent, "work", {"value": {1}}, timeout=30)
    assert not requests.send_request(agent, "work", timeout=1).ok
    app.close()


def test_requests_go_on_while_the_store_is_away(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are not counted, and the log says so once."""
    counts = RedisInFlight(connect("redis://localhost:1/0"), {"*": 1})
    began = time.monotonic()
    assert all(counts.enter("boss", "writer", str(number)) is None for number in range(100))
    assert time.monotonic() - began < 5
    assert [record.__dict__["action"] for record in caplog.records] == ["in_flight_not_counted"]
    counts.close()
