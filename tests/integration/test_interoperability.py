"""Interoperability: plain Celery tasks and applications, other result backends, older workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from support import Broker, settled

from waooaw_celery import AgentApp, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import InvalidMessage, UnknownMethod
from waooaw_celery.messages.queues import AMQP_MAX_PRIORITY, agent_queue


@pytest.fixture
def plain_app(broker: Broker) -> Iterator[Celery]:
    """A plain Celery application, without this package."""
    app = Celery("plain_app", broker=broker.url, backend=broker.redis_url, set_as_current=False)
    yield app
    app.close()


def test_a_plain_application_can_call_a_method(plain_app: Celery, app: AgentApp, probe: str) -> None:
    """The request is answered, and its sender is ``unknown``."""
    options = {"x-max-priority": AMQP_MAX_PRIORITY} if app.driver == "amqp" else {}
    plain_app.amqp.queues.add(f"agent.{probe}", queue_arguments=options or None)
    result = plain_app.send_task(f"{probe}.whoami", queue=f"agent.{probe}")
    facts = result.get(timeout=20)
    assert (facts["from"], facts["to"]) == ("unknown", probe)
    assert settled(app, result.id) is MessageStatus.HANDLED


def test_a_message_without_a_handler_becomes_a_dead_letter(plain_app: Celery, app: AgentApp, probe: str) -> None:
    """The caller gets UnknownMethod, and the receipt is DEAD."""
    app.registry.declare(probe, [*(app.registry.get(probe).handlers or ()), "retired"], f"{probe}@old", 1)
    response = RequestResponseHandler(app).send_request(probe, "retired", timeout=20)
    assert isinstance(response.error, UnknownMethod)
    assert f"has no handler '{probe}.retired'" in str(response.error)
    assert settled(app, response.message_id) is MessageStatus.DEAD
    assert "no handler" in (MessageBus(app).receipt(response.message_id).error or "")


def test_a_plain_task_is_not_changed(broker: Broker) -> None:
    """A plain task, even one named like a handler, is routed by Celery, with NORMAL priority."""
    app = broker.app(task_default_queue=broker.name())

    @app.task(name="billing.total", shared=False)
    def total(a: int, b: int) -> int:
        return a + b

    total.delay(1, b=2)
    declared = app.amqp.queues[app.conf.task_default_queue]
    with app.connection_for_read() as connection:
        with connection.SimpleQueue(declared) as queue:
            got = queue.get(timeout=10)
            got.ack()
        declared(connection.default_channel).delete()
    assert got.headers["task"] == "billing.total"
    assert "waooaw" not in got.headers
    assert got.properties["priority"] == (6 if app.driver == "redis" else 3)
    app.close()


def test_an_agents_worker_runs_plain_tasks_of_its_application(app: AgentApp, probe: str) -> None:
    """A plain task that is sent to the agent's queue returns its result."""
    assert app.send_task("probe.tasks.add", (2, 3), queue=agent_queue(probe)).get(timeout=20) == 5


def test_arguments_are_not_copied_into_headers(app: AgentApp, broker: Broker) -> None:
    """The payload is in the body only, not in argsrepr, which logs and Flower show."""
    name = broker.name()
    app.conf.waooaw_agents = [name]
    app.signature(f"{name}.command", args=({"iban": "DE02120300000000202051"},)).delay()
    with app.connection_for_read() as connection, connection.SimpleQueue(agent_queue(name)) as queue:
        got = queue.get(timeout=10)
        got.ack()
    assert "DE02" not in str(got.headers)
    assert got.payload[0] == [{"iban": "DE02120300000000202051"}]
    assert "expiration" not in got.properties


def test_an_argument_that_cannot_be_sent_is_refused(app: AgentApp, probe: str) -> None:
    """``.delay`` raises in the caller."""
    with pytest.raises(InvalidMessage, match=r"payload\.value is a set"):
        app.signature(f"{probe}.echo", kwargs={"value": {1}}).delay()


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)
def test_a_database_can_be_the_result_backend(broker: Broker, postgres_url: str) -> None:
    """A request returns its answer, and its timeout holds."""
    through_sql = Broker(broker.url, broker.redis_url, broker.folder)
    name = through_sql.name()
    app = through_sql.app(result_backend=f"db+{postgres_url}", waooaw_redis_url=broker.redis_url)
    through_sql.redis_url = f"db+{postgres_url}"
    process = through_sql.start(name, app)
    try:
        assert RequestResponseHandler(app).request(name, "echo", {"value": "sql"}, timeout=20) == "sql"
    finally:
        process.terminate()
        process.wait(30)
        app.close()


def test_a_request_that_timed_out_gets_a_final_status(app: AgentApp, probe: str) -> None:
    """Its receipt becomes EXPIRED when it was not begun, and FAILED when its handler was stopped."""
    response = RequestResponseHandler(app).send_request(probe, "sleep", {"seconds": 4}, timeout=1.5)
    assert not response.ok
    assert settled(app, response.message_id) in (MessageStatus.EXPIRED, MessageStatus.FAILED)
