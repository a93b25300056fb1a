"""The shared state of circuit breakers: in Redis, SQLite and PostgreSQL, as several processes see it."""

from __future__ import annotations

import json
import math
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

from waooaw_celery import AgentApp
from waooaw_celery.errors import CircuitOpen
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.store.resilience import cached_read

#: A breaker that opens after three failures, and is half open after 0.4 s.
LIMITS = {"waooaw_breaker_failures": 3, "waooaw_breaker_open_seconds": 0.4}


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """The URL of each kind of ledger, and None for Redis."""
    if request.param == "redis":
        return None
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def settings(valkey_broker: Broker, database_url: str | None) -> dict[str, Any]:
    """The settings of all applications of a test."""
    return LIMITS | {"waooaw_database_url": database_url, "waooaw_agents": [valkey_broker.name()]}


@pytest.fixture
def make(valkey_broker: Broker, settings: dict[str, Any]) -> Iterator[Callable[[], AgentApp]]:
    """Return a factory of applications that share only servers, as processes do."""
    apps: list[AgentApp] = []

    def _make() -> AgentApp:
        apps.append(valkey_broker.app(**settings))
        if settings["waooaw_database_url"] is not None:
            schema.upgrade(apps[-1].database)
        return apps[-1]

    yield _make
    for app in apps:
        app.close()


def agent_of(app: AgentApp) -> str:
    """Return the name of the agent of a test."""
    return app.settings.agents[0]


def fail(app: AgentApp, times: int) -> None:
    """Let requests fail."""
    for _ in range(times):
        app.breakers.failed(agent_of(app))


def is_refused(app: AgentApp) -> bool:
    """Return whether a request is refused. One that is let through as a probe gives its place back."""
    try:
        if app.breakers.admit(agent_of(app), "request", 5.0):
            app.breakers.end_probe(agent_of(app), "request", None)
    except CircuitOpen:
        return True
    return False


def state(app: AgentApp) -> str:
    """Return the stored state."""
    return next((each.state for each in app.breakers.states() if each.agent == agent_of(app)), "closed")


def test_failures_of_several_processes_open_it_for_all(make: Callable[[], AgentApp]) -> None:
    """Each reports less than the limit. The one that reported last refuses at once, the others in a second."""
    one, two, other = make(), make(), make()
    assert not is_refused(other)
    fail(one, 2)
    assert not is_refused(one)
    fail(two, 1)
    with pytest.raises(
        CircuitOpen, match="too many of the last requests to it have failed; ask again in"
    ) as raised:
        two.breakers.admit(agent_of(two), "request", 5.0)
    assert 0 < raised.value.retry_after <= 0.4
    assert raised.value.agent == agent_of(two)
    one.breakers.open_by_hand(agent_of(one), by="ada")  # else it is half open before the others look
    until(lambda: is_refused(other) and is_refused(one), "the others")


def test_answers_keep_it_closed(make: Callable[[], AgentApp]) -> None:
    """Three failures among seven requests are less than half; they travel with the failures."""
    app = make()
    for _ in range(4):
        app.breakers.succeeded(agent_of(app))
    fail(app, 3)
    assert state(app) == "closed"
    [breaker] = [each for each in app.breakers.states() if each.agent == agent_of(app)]
    assert (breaker.failures, breaker.requests) == (3, 7)
    fail(app, 1)
    assert state(app) == "open"


def test_answers_are_reported_while_failures_are_known(make: Callable[[], AgentApp]) -> None:
    """A process without failures of its own tells the store about its answers, within a second or so."""
    one, two = make(), make()
    fail(one, 2)
    until(lambda: agent_of(two) in two.breakers._exchange.records(), "the failures in the other process")
    for _ in range(9):
        two.breakers.succeeded(agent_of(two))

    def requests() -> int:
        two.breakers.refusing()
        return sum(each.requests for each in one.breakers.states() if each.agent == agent_of(one))

    until(lambda: requests() == 11, "the answers")
    fail(one, 1)
    assert state(one) == "closed"


def test_half_open_lets_one_of_many_through(make: Callable[[], AgentApp]) -> None:
    """Forty threads of four processes try at the same moment; the answer of the probe closes it for all."""
    apps = [make() for _ in range(4)]
    agent = agent_of(apps[0])
    fail(apps[0], 3)
    for app in apps:
        until(lambda app=app: agent in app.breakers._exchange.records(), "the open breaker")  # type: ignore[misc]
    until(lambda: state(apps[0]) == "half open", "the end of the pause")
    barrier = Barrier(40)

    def try_it(number: int) -> str | None:
        barrier.wait(30)
        try:
            return str(number) if apps[number % 4].breakers.admit(agent, str(number), 20.0) else "not refused"
        except CircuitOpen:
            return None

    with ThreadPoolExecutor(40) as pool:
        admitted = [each for each in pool.map(try_it, range(40)) if each is not None]
    assert len(admitted) == 1
    assert admitted[0].isdigit()
    apps[int(admitted[0]) % 4].breakers.end_probe(agent, admitted[0], True)
    assert state(apps[0]) == "closed"
    for app in apps:
        until(lambda app=app: not is_refused(app), "the closed breaker")  # type: ignore[misc]


def test_a_failed_probe_opens_it_again(make: Callable[[], AgentApp]) -> None:
    """The next one follows after another pause; only the newest probe counts."""
    app = make()
    agent = agent_of(app)
    fail(app, 3)
    until(lambda: state(app) == "half open", "the end of the pause")
    assert app.breakers.admit(agent, "first", 5.0)
    assert is_refused(app)
    app.breakers.end_probe(agent, "another", True)
    assert is_refused(app)
    app.breakers.end_probe(agent, "first", False)
    assert state(app) == "open"
    until(lambda: state(app) == "half open", "the end of the second pause")
    app.breakers.end_probe(agent, "first", True)
    assert app.breakers.admit(agent, "second", 5.0)


def test_a_killed_prober_frees_its_place(
    make: Callable[[], AgentApp], settings: dict[str, Any], valkey_broker: Broker
) -> None:
    """The place is kept for its request's timeout of two seconds and one more; then another is the probe."""
    app = make()
    agent = agent_of(app)
    fail(app, 3)
    until(lambda: state(app) == "half open", "the end of the pause")
    config = settings | {"broker_url": valkey_broker.url, "result_backend": valkey_broker.redis_url}
    command = [sys.executable, "breaker_prober.py", json.dumps(config), agent, "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROBE_FOLDER) as prober:
        try:
            assert prober.stdout is not None
            assert prober.stdout.readline() == "True\n"
            began = time.monotonic()
        finally:
            prober.kill()
    assert is_refused(app)
    until(lambda: not is_refused(app), "the place of the killed prober")
    assert 2.0 < time.monotonic() - began < 3 + 5


def test_it_is_opened_and_closed_by_hand(make: Callable[[], AgentApp]) -> None:
    """The error says who and why. No probe is sent, and failures and answers change nothing."""
    operator, app = make(), make()
    agent = agent_of(app)
    assert not is_refused(app)
    operator.breakers.open_by_hand(agent, by="ada", reason="its model is down")
    until(lambda: is_refused(app), "the open breaker")
    with pytest.raises(
        CircuitOpen, match=r"ada opened it \(its model is down\); `waooaw breakers close"
    ) as raised:
        app.breakers.admit(agent, "request", 5.0)
    assert math.isinf(raised.value.retry_after)
    fail(app, 3)
    app.breakers.end_probe(agent, "request", True)
    assert state(app) == "open"
    [breaker] = [each for each in app.breakers.states() if each.agent == agent]
    assert (breaker.by, breaker.reason, breaker.until, breaker.retry_at) == (
        "ada",
        "its model is down",
        None,
        None,
    )
    assert operator.breakers.close_by_hand(agent)
    until(lambda: not is_refused(app), "the closed breaker")
    assert not operator.breakers.close_by_hand(agent)


def test_it_is_opened_by_hand_for_a_time(make: Callable[[], AgentApp]) -> None:
    """Then it closes by itself, and counts as before."""
    app = make()
    app.breakers.open_by_hand(agent_of(app), by="ada", seconds=0.5)
    assert is_refused(app)
    until(lambda: not is_refused(app), "the end of the time")
    assert state(app) == "closed"
    fail(app, 3)
    assert is_refused(app)


def test_the_failures_of_a_window_are_forgotten_with_it(
    make: Callable[[], AgentApp], settings: dict[str, Any]
) -> None:
    """Two failures, and one after the window, leave it closed."""
    settings["waooaw_breaker_window"] = 0.5
    app = make()
    fail(app, 2)
    ends_at = time.monotonic() + 0.7
    until(lambda: time.monotonic() > ends_at, "the end of the window")
    fail(app, 1)
    assert state(app) == "closed"


def test_a_closed_breaker_costs_no_round_trip(
    make: Callable[[], AgentApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand answered requests read the store once."""
    app = make()
    monkeypatch.setattr(cached_read, "CACHE_SECONDS", 60.0)
    reads = []
    read = app.breakers._store.read
    monkeypatch.setattr(app.breakers._store, "read", lambda: reads.append(1) or read())  # type: ignore[func-returns-value]
    monkeypatch.setattr(app.breakers._store, "change", lambda *_, **__: pytest.fail("it was changed"))
    for number in range(1000):
        assert not app.breakers.admit(agent_of(app), str(number), 5.0)
        app.breakers.succeeded(agent_of(app))
    assert len(reads) == 1
