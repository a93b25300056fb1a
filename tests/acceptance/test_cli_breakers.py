"""The commands about circuit breakers and open requests: `breakers`, and their columns in `agents`."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from process_pool import waooaw

from waooaw_celery import create_app


@pytest.fixture
def agent() -> str:
    """Name of an agent that no worker has."""
    return f"writer-{uuid4().hex[:8]}"


@pytest.fixture
def env(redis_url: str, agent: str) -> dict[str, str]:
    """The environment of the commands."""
    return {
        "CELERY_BROKER_URL": redis_url,
        "CELERY_RESULT_BACKEND": redis_url,
        "WAOOAW_AGENTS": agent,
        "WAOOAW_SENDER": "caller",
        "WAOOAW_MAX_IN_FLIGHT": f"{agent}=2",
    }


def shown(*command: str, env: dict[str, str]) -> str:
    """Return what a command prints, on one line. It must succeed."""
    done = waooaw(*command, env=env)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def row_of(agent: str, env: dict[str, str]) -> str:
    """Return the row of an agent in the table of all agents."""
    [row] = [line for line in waooaw("agents", "--wide", env=env).stdout.splitlines() if agent in line]
    return " ".join(row.split())


def test_breakers_are_opened_listed_and_closed(agent: str, env: dict[str, str]) -> None:
    """With who, why and for how long; callers get an error that says so."""
    assert agent not in shown("breakers", env=env)
    told = shown("breakers", "open", agent, "--for", "600", "--reason", "new model", "--by", "ada", env=env)
    assert f"Requests to {agent} are refused. It closes after 600 s" in told
    assert f"{agent} open" in shown("breakers", env=env)
    [breaker] = [each for each in json.loads(shown("breakers", "--json", env=env)) if each["agent"] == agent]
    assert (breaker["state"], breaker["by"], breaker["reason"]) == ("open", "ada", "new model")
    assert breaker["until"] is not None
    assert "open by ada" in row_of(agent, env)
    refused = waooaw("request", agent, "work", "{}", env=env)
    assert refused.returncode == 1
    assert "ada opened it (new model)" in refused.stderr
    assert f"Requests to {agent} are let through" in shown("breakers", "close", agent, env=env)
    again = waooaw("breakers", "close", agent, env=env)
    assert again.returncode == 1
    assert "is closed" in again.stderr


def test_breakers_that_failures_have_opened_are_listed(agent: str, env: dict[str, str], redis_url: str) -> None:
    """With the number of failures before, and the time of the next probe after."""
    app = create_app(broker_url=redis_url, waooaw_breaker_failures=3, waooaw_breaker_open_seconds=600)
    app.breakers.succeeded(agent)
    for count in range(3):
        app.breakers.failed(agent)
        if count == 1:
            assert f"{agent} closed 2 of 3" in shown("breakers", env=env)
    assert f"{agent} open" in shown("breakers", env=env)
    assert "a probe from 2" in shown("breakers", env=env)
    app.breakers.close_by_hand(agent)
    app.close()


def test_agents_shows_the_open_requests(agent: str, env: dict[str, str], redis_url: str) -> None:
    """Those to agents that have a limit, of all callers together."""
    app = create_app(broker_url=redis_url, waooaw_max_in_flight={agent: 2})
    places = [app.in_flight.enter(caller, agent, caller) for caller in ("boss", "clerk")]
    [entry] = [each for each in json.loads(shown("agents", "--json", env=env)) if each["agent"]["name"] == agent]
    assert (entry["in_flight"], entry["breaker"]) == (2, None)
    assert "0 2 closed" in row_of(agent, env)  # running, in flight, breaker
    for place in places:
        assert place is not None
        app.in_flight.leave(place)
    app.close()


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("open", "nobody-has-this-name"), "is not known"),
        (("close", "nobody-has-this-name"), "is not known"),
        (("open", "nobody-has-this-name", "--for", "0"), "0"),
        (("open", "nobody-has-this-name", "--for", "soon"), "not a valid float"),
    ],
)
def test_bad_input_is_refused(env: dict[str, str], command: tuple[str, ...], error: str) -> None:
    """An unknown agent, and a time that is none."""
    done = waooaw("breakers", *command, env=env)
    assert done.returncode != 0
    assert error in done.stderr


def test_a_process_without_breakers_says_so(agent: str, env: dict[str, str]) -> None:
    """The command lists what others have stored, and cannot open one."""
    off = env | {"WAOOAW_BREAKER_FAILURES": "0"}
    assert "has no circuit breakers" in waooaw("breakers", env=off).stderr
    done = waooaw("breakers", "open", agent, env=off)
    assert done.returncode == 1
    assert "waooaw_breaker_failures is 0" in done.stderr
