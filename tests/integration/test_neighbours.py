"""Living with others: ordinary Celery tasks, stock producers, other result backends, other versions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from support import Broker, settled

from waooaw_celery import AgentApp, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import InvalidMessage, UnknownMethod
from waooaw_celery.messages.queues import AMQP_MAX_PRIORITY, agent_queue


@pytest.fixture
def stock(broker: Broker) -> Iterator[Celery]:
    """A Celery application with none of our code."""
    app = Celery("stock", broker=broker.url, backend=broker.redis_url, set_as_current=False)
    yield app
    app.close()


def test_a_stock_application_can_call_a_method(stock: Celery, app: AgentApp, probe: str) -> None:
    """A request published by plain Celery is answered, from a sender called ``unknown``."""
    options = {"x-max-priority": AMQP_MAX_PRIORITY} if app.driver == "amqp" else {}
    stock.amqp.queues.add(f"agent.{probe}", queue_arguments=options or None)
    result = stock.send_task(f"{probe}.whoami", queue=f"agent.{probe}")
    facts = result.get(timeout=20)
    assert (facts["from"], facts["to"]) == ("unknown", probe)
    assert settled(app, result.id) is MessageStatus.HANDLED


def test_what_no_handler_can_take_ends_as_a_dead_letter(stock: Celery, app: AgentApp, probe: str) -> None:
    """A stock application that names a handler which the worker lacks hears of it, and so does the receipt."""
    app.registry.declare(probe, [*(app.registry.get(probe).handlers or ()), "retired"], f"{probe}@old", 1)
    response = RequestResponseHandler(app).send_request(probe, "retired", timeout=20)
    assert isinstance(response.error, UnknownMethod)
    assert f"has no handler '{probe}.retired'" in str(response.error)
    assert settled(app, response.message_id) is MessageStatus.DEAD
    assert "no handler" in (MessageBus(app).receipt(response.message_id).error or "")


def test_an_ordinary_task_of_the_application_is_left_alone(broker: Broker) -> None:
    """A plain task, even one whose name looks like a handler's, goes where Celery sends it, as NORMAL."""
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


def test_an_agents_worker_runs_the_ordinary_tasks_of_its_application(app: AgentApp, probe: str) -> None:
    """A plain task that is sent to the agent's queue, the default one there, brings its result."""
    assert app.send_task("probe.tasks.add", (2, 3), queue=agent_queue(probe)).get(timeout=20) == 5


def test_arguments_are_not_copied_into_headers(app: AgentApp, broker: Broker) -> None:
    """What is said stands in the body only: not in argsrepr, which logs and Flower show."""
    name = broker.name()
    app.conf.waooaw_agents = [name]
    app.signature(f"{name}.command", args=({"iban": "DE02120300000000202051"},)).delay()
    with app.connection_for_read() as connection, connection.SimpleQueue(agent_queue(name)) as queue:
        got = queue.get(timeout=10)
        got.ack()
    assert "DE02" not in str(got.headers)
    assert got.payload[0] == [{"iban": "DE02120300000000202051"}]
    assert "expiration" not in got.properties


def test_a_wrong_argument_is_refused_before_it_is_sent(app: AgentApp, probe: str) -> None:
    """``.delay`` of something that is no JSON value raises in the caller."""
    with pytest.raises(InvalidMessage, match=r"payload\.value is a set"):
        app.signature(f"{probe}.echo", kwargs={"value": {1}}).delay()


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)
def test_answers_may_come_through_postgresql(broker: Broker, postgres_url: str) -> None:
    """With a database as result backend the same request brings its answer, and its timeout holds."""
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


def test_a_handler_gone_with_its_worker_does_not_hang_the_caller(app: AgentApp, probe: str) -> None:
    """The receipt of a request that timed out becomes EXPIRED or HANDLED, never stays open."""
    response = RequestResponseHandler(app).send_request(probe, "sleep", {"seconds": 0.6}, timeout=0.2)
    assert not response.ok
    assert settled(app, response.message_id) in (MessageStatus.EXPIRED, MessageStatus.HANDLED)
