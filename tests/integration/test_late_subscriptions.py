"""A subscription that is made while the worker runs works at once, or is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, EventBus, MessageStatus, RequestResponseHandler
from waooaw_celery.agents import RemoteError
from waooaw_celery.ledger.database import upgrade
from waooaw_celery.store.subscriptions import CACHE_SECONDS
from waooaw_celery.testing.embedded import end_all

Ask = Callable[..., Any]


class Probe:
    """A running ``late_probe``."""

    def __init__(self, broker: Broker, app: AgentApp) -> None:
        self.broker, self.app = broker, app
        self.name, self.word = broker.name(), f"t{uuid4().hex[:8]}"
        self.processes: list[Any] = []

    def start(self, *options: str, node: str | None = None) -> None:
        process = self.broker.start(self.name, self.app, *options, node=node, module="late_probe")
        self.processes.append(process)

    def ask(self, method: str, **arguments: Any) -> Any:
        return RequestResponseHandler(self.app).request(self.name, method, arguments, timeout=20)

    def subscribe(self, **arguments: Any) -> None:
        self.ask("subscribe", **({"pattern": f"{self.word}.*", "name": "late"} | arguments))

    def refusal(self, **arguments: Any) -> str:
        with pytest.raises(RemoteError) as refused:
            self.subscribe(**arguments)
        assert refused.value.type == "ConfigurationError"
        return refused.value.message


@pytest.fixture(params=["redis", "sqlite", "postgresql", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def probe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Probe]:
    """On Redis with each store, and on RabbitMQ."""
    kind = request.param
    found = request.getfixturevalue(
        {"rabbitmq": "rabbitmq_broker", "postgresql": "ledger_broker"}.get(kind, "valkey_broker")
    )
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}" if kind == "sqlite" else found.database_url
    broker = Broker(found.url, found.redis_url, tmp_path, url)
    with closing(broker.app()) as app:
        if kind == "sqlite":
            upgrade.upgrade(app.database)
        made = Probe(broker, app)
        yield made
        end_all(made.processes)
    broker.clean()


@pytest.fixture
def on_redis(valkey_broker: Broker) -> Iterator[Probe]:
    with closing(valkey_broker.app()) as app:
        made = Probe(valkey_broker, app)
        yield made
        end_all(made.processes)


def check_that_it_subscribes(probe: Probe) -> None:
    bus = EventBus(probe.app)
    assert bus.publish(f"{probe.word}.before", 0).receipts == {}
    probe.subscribe()
    subscriber = f"{probe.name}.late"
    assert subscriber in {each.subscriber for each in bus.subscriptions()}
    until(
        lambda: subscriber in bus.publish(f"{probe.word}.after", 1).receipts, "the subscription", CACHE_SECONDS + 5
    )
    published = bus.publish(f"{probe.word}.after", 2)
    assert settled(probe.app, published.receipts[subscriber].message_id) is MessageStatus.HANDLED
    assert 2 in probe.ask("seen")
    bus.unsubscribe(subscriber)
    bus.subscriptions()
    assert bus.publish(f"{probe.word}.removed", 3).receipts == {}
    bus.resubscribe(subscriber)
    published = bus.publish(f"{probe.word}.again", 4)
    assert settled(probe.app, published.receipts[subscriber].message_id) is MessageStatus.HANDLED


def test_a_worker_with_threads_subscribes_at_once(probe: Probe) -> None:
    """Publishers know it within a second; it is removed and restored like any other."""
    probe.start("--pool", "threads")
    check_that_it_subscribes(probe)


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_a_worker_with_another_pool_in_one_process_subscribes_at_once(on_redis: Probe, pool: str) -> None:
    """As with threads."""
    on_redis.start("--pool", pool)
    check_that_it_subscribes(on_redis)


def test_a_worker_with_processes_refuses(on_redis: Probe) -> None:
    """Nothing is subscribed, and the sentence says what to do."""
    on_redis.start()
    assert on_redis.refusal() == (
        f"{on_redis.name}.event.late cannot be registered while a worker runs with the prefork pool: its "
        "processes were forked without it. Register it where its module is imported, and restart the workers, "
        "or use --pool threads"
    )
    assert f"{on_redis.name}.late" not in {each.subscriber for each in EventBus(on_redis.app).subscriptions()}
    on_redis.refusal()  # and not that a handler of this name exists


def test_what_a_running_worker_cannot_give_is_refused(on_redis: Probe) -> None:
    """A queue that it does not read, earlier events, and a second worker, which would not have the handler."""
    on_redis.start("--pool", "threads", "-Q", f"agent.{on_redis.name}")
    assert "that does not read the queue of" in on_redis.refusal(own=False)
    assert "with since=: only the start of a worker sends earlier events" in on_redis.refusal(since=60)
    on_redis.start("--pool", "threads", node=f"second-{on_redis.name}")
    # Either worker may get the request.
    assert "would get its messages too, and would not have it" in on_redis.refusal()
    assert f"{on_redis.name}.late" not in {each.subscriber for each in EventBus(on_redis.app).subscriptions()}


def test_a_handler_that_may_run_too_long_is_refused(ledger_broker: Broker) -> None:
    """As at the start of a worker. It is not registered: the name is free afterwards."""
    with closing(ledger_broker.app()) as app:
        probe = Probe(ledger_broker, app)
        probe.start("--pool", "threads")
        try:
            assert "give it a shorter time_limit" in probe.refusal(time_limit=100_000)
            probe.subscribe()
        finally:
            end_all(probe.processes)


def test_a_method_that_is_registered_late_answers(on_redis: Probe) -> None:
    """The same holds for all kinds of handlers."""
    on_redis.start("--pool", "threads")
    on_redis.ask("register")
    assert on_redis.ask("answer", value="abc") == "cba"


def test_a_removed_subscription_stays_removed_and_is_logged(on_redis: Probe) -> None:
    """It was removed by command; a worker that subscribes again says so."""
    on_redis.start("--pool", "threads")
    on_redis.subscribe()
    EventBus(on_redis.app).unsubscribe(f"{on_redis.name}.late")
    end_all(on_redis.processes)
    on_redis.start("--pool", "threads")
    on_redis.subscribe()
    log = on_redis.broker.folder / f"{on_redis.name}.log"
    until(lambda: "was removed by command" in log.read_text(), "the warning")
    assert EventBus(on_redis.app).publish(f"{on_redis.word}.x").receipts == {}
