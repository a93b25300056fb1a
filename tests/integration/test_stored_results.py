"""A worker stores the first result of a message in one round trip, as Celery would store it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery.app.task import Context
from faults.servers import Valkey, lone_valkey
from support import Broker

from waooaw_celery import AgentApp

#: A user who may run no scripts.
GUEST = "scriptless"


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """The result backend."""
    with lone_valkey() as server:
        server.client.acl_setuser(
            GUEST, enabled=True, nopass=True, categories=["+@all", "-@scripting"], keys=["*"], channels=["*"]
        )
        yield server


@pytest.fixture(scope="module")
def broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("stored"))
    yield broker
    broker.clean()


@pytest.fixture(params=["may run scripts", "may not"])
def app(broker: Broker, server: Valkey, request: pytest.FixtureRequest) -> Iterator[AgentApp]:
    guest = "" if request.param == "may run scripts" else f"?username={GUEST}&password=any"
    app = broker.app(result_backend=f"{server.url}{guest}", waooaw_redis_url=broker.redis_url)
    yield app
    app.close()


def attempt(**facts: Any) -> Context:
    """Return Celery's facts about an attempt."""
    return Context(id=str(uuid4()), parent_id="parent", group="group", **facts)


def stored(server: Valkey, request: Context) -> dict[str, Any]:
    """Return what the server stores for an attempt."""
    found: dict[str, Any] = json.loads(server.client.get(f"celery-task-meta-{request.id}"))
    return found


@pytest.mark.parametrize("extended", [False, True])
def test_a_result_is_stored_and_published_as_celery_does(app: AgentApp, server: Valkey, extended: bool) -> None:
    """Its fields and its expiry are Celery's."""
    app.conf.result_extended = extended
    backend: Any = app.backend
    request = attempt(task="an-agent.a_method", hostname="a-host", retries=1)
    with server.client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(f"celery-task-meta-{request.id}")
        channel.get_message(timeout=5)
        backend.mark_as_done(request.id, {"a": 1}, request=request)
        message = channel.get_message(timeout=5)
    found = stored(server, request)
    assert message is not None
    assert json.loads(message["data"]) == found
    expected = {**backend._get_result_meta({"a": 1}, "SUCCESS", None, request), "task_id": request.id}
    assert {**found, "date_done": None} == {**expected, "date_done": None}
    assert 0 < server.client.ttl(f"celery-task-meta-{request.id}") <= backend.expires
    assert app.AsyncResult(request.id).get(timeout=5) == {"a": 1}


def test_the_first_of_two_results_stays(app: AgentApp, server: Valkey) -> None:
    """A second copy of a message cannot change its answer."""
    request = attempt()
    for result in (1, 2):
        app.backend.mark_as_done(request.id, result, request=request)
    assert stored(server, request)["result"] == 1


@pytest.mark.parametrize("state", ["STARTED", "RETRY", "FAILURE", "CHUNK"])
def test_a_result_replaces_another_state(app: AgentApp, server: Valkey, state: str) -> None:
    """What an earlier attempt or a part of a stream has stored does not stay."""
    request, backend = attempt(), app.backend
    failure = state in {"RETRY", "FAILURE"}
    backend.store_result(request.id, ValueError("early") if failure else "early", state, request=request)
    assert stored(server, request)["status"] == state
    backend.mark_as_done(request.id, "late", request=request)
    assert (stored(server, request)["status"], stored(server, request)["result"]) == ("SUCCESS", "late")


def test_the_server_is_asked_once(broker: Broker, server: Valkey) -> None:
    """Neither an earlier result is fetched, nor is a transaction opened."""
    app = broker.app(result_backend=server.url, waooaw_redis_url=broker.redis_url)
    try:
        app.backend.mark_as_done("before", 1, request=attempt())  # the server has the script
        server.client.config_resetstat()
        app.backend.mark_as_done("once", 1, request=attempt())
        calls = {name: facts["calls"] for name, facts in server.client.info("commandstats").items()}
        assert calls.get("cmdstat_evalsha") == 1
        assert not calls.keys() & {"cmdstat_get", "cmdstat_multi", "cmdstat_setex"}
    finally:
        app.close()
