"""Handlers that are methods of objects, partials, lambdas and objects, in a worker on each broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import Broker, until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import InvalidArguments
from waooaw_celery.testing.embedded import end


@pytest.fixture(
    scope="module",
    params=["ledger prefork", "ledger threads", pytest.param("rabbitmq prefork", marks=pytest.mark.rabbitmq)],
)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[AgentApp, str]]:
    """An application and the name of an agent, whose worker has one process."""
    kind, pool = request.param.split()
    broker: Broker = request.getfixturevalue(f"{kind}_broker")
    app, name = broker.app(), broker.name()
    process = broker.start(name, app, "-P", pool, "-c", "1", module="callables_probe")
    yield app, name
    end(process)
    app.close()


def test_every_kind_of_callable_answers_requests(served: tuple[AgentApp, str]) -> None:
    """By the name that it was given, and with the error for wrong arguments that a function has."""
    app, agent = served
    requests = Requests(app)
    methods = ("greet", "hail", "greet_later", "object", "partial", "partial_later", "short", "Hello")
    for method in methods:
        assert requests.request(agent, method, {"name": "Ada"}, timeout=20) == "Hello, Ada!", method
        with pytest.raises(InvalidArguments, match=rf"{agent}\.{method} takes \(.*name\): .*'nmae'"):
            requests.request(agent, method, {"name": "Ada", "nmae": "Bob"}, timeout=20)
    assert list(requests.stream(agent, "letters", {"name": "Ada"}, timeout=20)) == ["A", "d", "a"]
    assert requests.request(agent, "short_stream", {"name": "Ada"}, timeout=20) == ["Hello, Ada!"]
    assert set(app.registry.get(agent).handlers or ()) >= {*methods, "letters", "seen"}


def test_every_kind_of_handler_may_be_a_method_of_an_object(served: tuple[AgentApp, str]) -> None:
    """Handlers of types, of events and of replies."""
    app, agent = served
    bus, requests = MessageBus(app), Requests(app)
    bus.send(Message(from_agent="tests", to_agent=agent, payload=1))
    bus.send(Message(from_agent="tests", to_agent=agent, payload=2, message_type=MessageType.QUERY))
    EventBus(app).publish(f"{agent}.began", 3)
    requests.request(agent, "ask", {"name": "Bob"}, timeout=20)

    def seen() -> list[object]:
        found: list[object] = requests.request(agent, "seen", timeout=20)
        return sorted(found, key=str)

    expected = sorted([1, 3, "Hello, Bob!", [f"{agent}.query", 2]], key=str)
    until(lambda: seen() == expected, "all handlers")
