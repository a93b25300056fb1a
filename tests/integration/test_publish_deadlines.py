"""Every call that publishes ends in time, however the broker fails, and a refused message was not published."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from proxy import Proxy, proxied
from support import Broker, queue_length, until

from waooaw_celery import (
    AgentApp,
    EventBus,
    Message,
    MessageBus,
    MessageStatus,
    MessageType,
    RequestResponseHandler,
    RequestTimeout,
)
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.errors import BrokerUnavailable, UnknownMessage
from waooaw_celery.messages.queues import HandlerName

#: Seconds that the first call may take on a frozen broker: three for a reply, two for a connection, and three more
#: for a busy computer.
FIRST_CALL_SECONDS = 3.0 + 2.0 + 3.0


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """A proxy in front of the broker."""
    with proxied(broker.url) as proxy:
        yield proxy


@pytest.fixture
def proxied_app(broker: Broker, proxy: Proxy) -> Iterator[AgentApp]:
    """An application behind the proxy that has already sent a message, so that the queue exists."""
    with closing(broker.app(broker_url=proxy.url, result_backend=broker.redis_url)) as app:
        yield app


@pytest.fixture
def agent(broker: Broker, proxied_app: AgentApp) -> str:
    """The name of a registered agent without a worker."""
    name = broker.name()
    handlers = ["command", "ask", "event.told"]
    proxied_app.registry.declare(name, handlers, f"{name}@nowhere", lifetime=60.0)
    MessageBus(proxied_app).send(message(name))
    return name


def message(to: str) -> Message:
    """Return a message."""
    return Message(from_agent="tests", to_agent=to)


def queued(broker: Broker, agent: str) -> int:
    """Return how many messages are in an agent's queue, by a connection that the proxy does not freeze."""
    with closing(broker.app()) as app:
        return queue_length(app, agent)


def failure_of(call: Callable[[], object]) -> tuple[float, BrokerUnavailable]:
    """Return after how many seconds a call failed, and its error."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as failed:
        call()
    return time.monotonic() - began, failed.value


def calls(app: AgentApp, to: str) -> dict[str, Callable[[], object]]:
    """Return the calls that publish."""
    bus, requests = MessageBus(app), RequestResponseHandler(app)
    return {
        "send": lambda: bus.send(message(to)),
        "send_many": lambda: bus.send_many([message(to), message(to)]),
        "broadcast": lambda: bus.broadcast(from_agent="tests", to_agents=[to], payload={}),
        "request": lambda: requests.request(to, "ask", timeout=20.0),
        "task": lambda: app.send_task(f"{to}.command", ({},)),
    }


@pytest.mark.parametrize("verb", ["send", "request", "task"])
def test_calls_end_in_time_on_a_frozen_broker(verb: str, proxy: Proxy, proxied_app: AgentApp, agent: str) -> None:
    """The first call fails in time with ``uncertain`` True. The next ones fail with False: they try nothing."""
    # The long pause keeps it open on a slow computer.
    proxied_app.circuit_breaker = CircuitBreaker(first_pause=60.0, longest_pause=60.0)
    proxy.freeze(also_new=True)
    seconds, failure = failure_of(calls(proxied_app, agent)[verb])
    assert seconds < FIRST_CALL_SECONDS
    assert failure.uncertain
    for call in calls(proxied_app, agent).values():
        _, failure = failure_of(call)
        assert not failure.uncertain
        assert "nothing was published: the broker did not answer" in str(failure)


def test_refused_message_is_not_recorded(proxy: Proxy, proxied_app: AgentApp, agent: str) -> None:
    """A refused message has no receipt and may be sent again. One that was tried is PENDING."""
    bus = MessageBus(proxied_app)
    proxy.freeze(also_new=True)
    tried, refused = message(agent), message(agent)
    failure_of(lambda: bus.send(tried))
    failure_of(lambda: bus.send(refused))
    assert bus.receipt(tried.message_id).status is MessageStatus.PENDING
    with pytest.raises(UnknownMessage):
        bus.receipt(refused.message_id)
    proxy.thaw()

    def sent() -> bool:
        try:
            bus.send(refused)
        except BrokerUnavailable as error:
            if error.uncertain:
                raise
            return False
        return True

    until(sent, "the end of the pause")
    assert bus.receipt(refused.message_id).status is MessageStatus.SENT


@pytest.mark.slow
def test_response_is_recorded_while_the_breaker_is_open(proxy: Proxy, proxied_app: AgentApp, agent: str) -> None:
    """A response is not refused: it stays PENDING until recovery publishes it."""
    proxy.freeze(also_new=True)
    failure_of(calls(proxied_app, agent)["send"])
    assert not failure_of(calls(proxied_app, agent)["send"])[1].uncertain
    target = HandlerName(agent, "command")
    answer = proxied_app.message_factory.complete(target, message(agent).evolve(message_type=MessageType.RESPONSE))
    _, failure = failure_of(lambda: proxied_app.publisher.publish([(target, answer)]))
    assert failure.uncertain
    assert MessageBus(proxied_app).receipt(answer.message_id).status is MessageStatus.PENDING


def test_unconfirmed_publish_is_not_repeated(
    broker: Broker, proxy: Proxy, proxied_app: AgentApp, agent: str
) -> None:
    """After the broker thaws it has one copy of the message, not three."""
    bus = MessageBus(proxied_app)
    proxy.freeze(also_new=True)
    failure_of(lambda: bus.send(message(agent)))
    proxy.thaw()
    until(lambda: queued(broker, agent) == 2, "the earlier message and the unconfirmed one")
    until(lambda: _try_to_send(bus, agent), "the end of the pause")
    assert queued(broker, agent) == 3


def _try_to_send(bus: MessageBus, to: str) -> bool:
    try:
        bus.send(message(to))
    except BrokerUnavailable:
        return False
    return True


def test_event_without_subscribers_needs_no_broker(proxy: Proxy, proxied_app: AgentApp) -> None:
    """It is recorded only."""
    proxy.freeze(also_new=True)
    published = EventBus(proxied_app).publish(topic="nobody.wants.this", event={}, from_agent="tests")
    assert not published.receipts


def test_request_ends_with_its_timeout_on_a_dead_connection(
    broker: Broker, proxy: Proxy, proxied_app: AgentApp, agent: str
) -> None:
    """The connection freezes after the request was published: the caller waits no longer than its timeout."""
    requests = RequestResponseHandler(proxied_app)
    with pytest.raises(RequestTimeout):
        requests.request(agent, "ask", timeout=0.2)  # opens the connections for results
    before, timeout = queued(broker, agent), 4.0
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        asked = threads.submit(requests.request, agent, "ask", timeout=timeout)
        until(lambda: queued(broker, agent) > before, "the published request")
        until(lambda: proxied_app.receipts.recent(limit=1)[0].status is MessageStatus.SENT, "its confirm")
        proxy.freeze(also_new=True)
        assert not asked.done()
        with pytest.raises(RequestTimeout):
            asked.result(timeout + FIRST_CALL_SECONDS)
        assert timeout <= time.monotonic() - began < timeout + FIRST_CALL_SECONDS
