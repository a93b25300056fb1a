"""Every call ends in time, however the broker fails; and what is refused was not published."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from proxy import Proxy, proxied
from support import Broker, until

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
from waooaw_celery.messages.queues import HandlerName, agent_queue, queue_depth

#: Seconds that a call may take on a broker that froze: the answer is awaited for three, a connection for two; and
#: a computer may be busy.
FIRST = 3.0 + 2.0 + 3.0
#: Seconds that a call may take once it is known that the broker is away.
LATER = 1.0


@pytest.fixture
def line(broker: Broker) -> Iterator[Proxy]:
    """The line to the broker."""
    with proxied(broker.url) as proxy:
        yield proxy


@pytest.fixture
def remote(broker: Broker, line: Proxy) -> Iterator[AgentApp]:
    """An application at the other end of the line, which has sent something already; its recipient has a queue."""
    amqp = broker.url.startswith("amqp")
    url = f"amqp://guest:guest@127.0.0.1:{line.port}//" if amqp else f"redis://127.0.0.1:{line.port}/"
    with closing(broker.app(broker_url=url, result_backend=broker.redis_url)) as app:
        yield app


@pytest.fixture
def away(broker: Broker, remote: AgentApp) -> str:
    """Name of an agent that is known and whose worker does not run."""
    name = broker.name()
    handlers = ["command", "ask", "event.told"]
    remote.registry.declare(name, handlers, f"{name}@nowhere", lifetime=60.0)
    MessageBus(remote).send(message(name))
    return name


def message(to: str) -> Message:
    """Return a message."""
    return Message(from_agent="tests", to_agent=to)


def took(call: Callable[[], object]) -> tuple[float, BrokerUnavailable]:
    """Return how long a call took to fail, and how."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as failed:
        call()
    return time.monotonic() - began, failed.value


def calls(app: AgentApp, to: str) -> dict[str, Callable[[], object]]:
    """Return what can be called that publishes."""
    bus, requests = MessageBus(app), RequestResponseHandler(app)
    return {
        "send": lambda: bus.send(message(to)),
        "send_many": lambda: bus.send_many([message(to), message(to)]),
        "broadcast": lambda: bus.broadcast(from_agent="tests", to_agents=[to], payload={}),
        "request": lambda: requests.request(to, "ask", timeout=20.0),
        "task": lambda: app.send_task(f"{to}.command", ({},)),
    }


@pytest.mark.parametrize("verb", ["send", "request", "task"])
def test_a_broker_that_froze_holds_nobody_up(verb: str, line: Proxy, remote: AgentApp, away: str) -> None:
    """The first call ends in time and does not know; the next ones end at once and do."""
    remote.circuit_breaker = CircuitBreaker(first_pause=60.0, longest_pause=60.0)  # this computer may be slow
    line.freeze(also_new=True)
    seconds, failure = took(calls(remote, away)[verb])
    assert seconds < FIRST
    assert failure.uncertain
    for call in calls(remote, away).values():
        seconds, failure = took(call)
        assert seconds < LATER
        assert not failure.uncertain


def test_what_is_refused_is_not_written_down(line: Proxy, remote: AgentApp, away: str) -> None:
    """A message of which nothing was tried has no receipt and may be sent again; one that was tried is PENDING."""
    bus = MessageBus(remote)
    line.freeze(also_new=True)
    tried, refused = message(away), message(away)
    took(lambda: bus.send(tried))
    took(lambda: bus.send(refused))
    assert bus.receipt(tried.message_id).status is MessageStatus.PENDING
    with pytest.raises(UnknownMessage):
        bus.receipt(refused.message_id)
    line.thaw()

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


def test_an_answer_is_written_down_while_the_broker_is_away(line: Proxy, remote: AgentApp, away: str) -> None:
    """What was accepted before is not refused: it stays PENDING, for the recovery to publish."""
    line.freeze(also_new=True)
    took(calls(remote, away)["send"])
    assert not took(calls(remote, away)["send"])[1].uncertain
    target = HandlerName(away, "command")
    answer = remote.complete(target, message(away).evolve(message_type=MessageType.RESPONSE))
    _, failure = took(lambda: remote.send_messages([(target, answer)]))
    assert failure.uncertain
    assert MessageBus(remote).receipt(answer.message_id).status is MessageStatus.PENDING


def test_a_broker_that_froze_gets_no_copies(broker: Broker, line: Proxy, remote: AgentApp, away: str) -> None:
    """A publish whose confirmation did not come is not repeated: when it thaws there is one message, not three."""
    bus = MessageBus(remote)
    line.freeze(also_new=True)
    took(lambda: bus.send(message(away)))
    line.thaw()

    def waiting() -> int:
        with closing(broker.app()) as app, app.connection_for_read() as connection:
            return queue_depth(connection, agent_queue(away)).total

    until(lambda: waiting() == 2, "the message that was sent before, and the one on the line")
    until(lambda: _sent(bus, away), "the end of the pause")
    assert waiting() == 3


def _sent(bus: MessageBus, to: str) -> bool:
    try:
        bus.send(message(to))
    except BrokerUnavailable:
        return False
    return True


def test_an_event_that_nobody_wants_does_not_need_the_broker(line: Proxy, remote: AgentApp) -> None:
    """It is only written down."""
    line.freeze(also_new=True)
    took_none = EventBus(remote).publish(topic="nobody.wants.this", event={}, from_agent="tests")
    assert not took_none.receipts


def test_a_request_ends_with_its_timeout_when_the_line_goes_dead_behind_it(
    line: Proxy, remote: AgentApp, away: str
) -> None:
    """The request is on its way, then the line freezes: the caller waits for no longer than it said."""
    requests = RequestResponseHandler(remote)
    with pytest.raises(RequestTimeout):
        requests.request(away, "ask", timeout=0.2)  # the answers' connections are there
    began = time.monotonic()
    asked = []

    def ask() -> None:
        with pytest.raises(RequestTimeout):
            requests.request(away, "ask", timeout=1.0)
        asked.append(time.monotonic() - began)

    ask()
    line.freeze(also_new=True)
    assert asked[0] < 1.0 + FIRST
