"""Wrong arguments, odd parameter names, groups of exceptions and results, in every kind of handler and pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest
from celery import Celery
from support import Broker, settled, until

from waooaw_celery import AgentApp, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery import aio as aio_api
from waooaw_celery.errors import InvalidArguments, InvalidMessage, RemoteError, UnknownMessage
from waooaw_celery.messages.queues import AMQP_MAX_PRIORITY
from waooaw_celery.testing.embedded import end

KINDS = ["plain", "awaited", "generated", "generated_async", "bound", "automatic"]
POOLS = ["ledger prefork", "ledger threads", "ledger solo", "ledger gevent"]
WRONG = [
    ({"nmae": "Ada"}, "missing a required argument: 'name'"),
    ({"name": "Ada", "nmae": "Bob"}, "unexpected keyword argument 'nmae'"),
    ({}, "missing a required argument: 'name'"),
]


@pytest.fixture(scope="module", params=[*POOLS, pytest.param("rabbitmq prefork", marks=pytest.mark.rabbitmq)])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Broker, AgentApp, str]]:
    """A broker, an application and the name of an agent, whose worker has each pool in turn."""
    kind, pool = request.param.split()
    broker: Broker = request.getfixturevalue(f"{kind}_broker")
    # Nothing is checked where it is sent, so that wrong arguments arrive.
    app, name = broker.app(waooaw_check_arguments="arrival"), broker.name()
    process = broker.start(name, app, "-P", pool, module="arguments_probe", waooaw_check_arguments="arrival")
    yield broker, app, name
    end(process)
    app.close()


@pytest.fixture
def app(served: tuple[Broker, AgentApp, str]) -> AgentApp:
    return served[1]


@pytest.fixture
def agent(served: tuple[Broker, AgentApp, str]) -> str:
    return served[2]


def calls(app: AgentApp, agent: str) -> list[str]:
    """Return which handlers of the agent ran."""
    return list(RequestResponseHandler(app).request(agent, "calls", timeout=20))


def ended(app: AgentApp, message_id: str) -> bool:
    """Return whether a message has ended; one that plain Celery sent has no receipt before it is delivered."""
    with suppress(UnknownMessage):
        return MessageBus(app).receipt(message_id).status.final
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_named_at_once(app: AgentApp, agent: str, kind: str) -> None:
    """The caller gets InvalidArguments with the parameter; the handler does not run, and is not retried."""
    before = calls(app, agent).count(kind)
    for params, text in WRONG:
        with pytest.raises(InvalidArguments, match=rf"^{agent}\.{kind} takes \(name, greeting=…\): .*{text}"):
            RequestResponseHandler(app).request(agent, kind, params, timeout=20)
    response = RequestResponseHandler(app).send_request(agent, kind, WRONG[0][0], timeout=20)
    assert isinstance(response.error, InvalidArguments)
    assert settled(app, response.message_id) is MessageStatus.FAILED
    receipt = MessageBus(app).receipt(response.message_id)
    assert receipt.attempts == 1
    assert (receipt.error or "").startswith(f"InvalidArguments: {agent}.{kind} takes")
    assert calls(app, agent).count(kind) == before


def test_wrong_arguments_in_the_async_api(app: AgentApp, agent: str) -> None:
    """An awaited request raises the same error."""

    async def ask() -> None:
        await aio_api.RequestResponseHandler(app).request(agent, "awaited", {"nmae": "Ada"}, timeout=20)

    with pytest.raises(InvalidArguments, match="'name'"):
        asyncio.run(ask())


@pytest.mark.parametrize("kind", ["generated", "generated_async"])
def test_wrong_arguments_of_a_stream(app: AgentApp, agent: str, kind: str) -> None:
    """A caller that reads the parts of an answer gets the same error."""
    with pytest.raises(InvalidArguments, match="'nmae'"):
        list(RequestResponseHandler(app).stream(agent, kind, {"name": "Ada", "nmae": "x"}, timeout=20))


@pytest.mark.parametrize("handler", ["command", "query"])
def test_wrong_arguments_of_a_message_handler(
    served: tuple[Broker, AgentApp, str], app: AgentApp, agent: str, handler: str
) -> None:
    """A plain Celery program that sends no payload, or two, gets a failed message, which is not retried."""
    broker = served[0]
    plain = Celery("plain", broker=broker.url, backend=broker.redis_url, set_as_current=False)
    options = {"x-max-priority": AMQP_MAX_PRIORITY} if app.driver == "amqp" else {}
    plain.amqp.queues.add(f"agent.{agent}", queue_arguments=options or None)
    for args in ((), (1, 2)):
        sent = plain.send_task(f"{agent}.{handler}", args, queue=f"agent.{agent}")
        until(lambda id_=sent.id: ended(app, id_), "the end of the message")
        receipt = MessageBus(app).receipt(sent.id)
        assert (receipt.status, receipt.attempts) == (MessageStatus.FAILED, 1)
        assert f"{agent}.{handler} takes one argument, the payload" in (receipt.error or "")
    plain.close()


def test_wrong_arguments_inside_another_request(
    app: AgentApp, agent: str, served: tuple[Broker, AgentApp, str]
) -> None:
    """A handler that itself asks wrongly fails with a RemoteError: its own caller's arguments were right."""
    broker = served[0]
    other = broker.name()
    process = broker.start(other, app, module="arguments_probe")
    try:
        with pytest.raises(RemoteError, match=rf"{agent} raised InvalidArguments: {other}\.plain"):
            RequestResponseHandler(app).request(agent, "ask_wrongly", {"to_agent": other}, timeout=20)
        RequestResponseHandler(app).request(agent, "ask_for_reply", {"to_agent": other}, timeout=20)

        def replied() -> bool:
            found = RequestResponseHandler(app).request(agent, "replies", timeout=20)
            return any(each.startswith(f"InvalidArguments: {other}.plain takes") for each in found)

        until(replied, "the reply")
    finally:
        end(process)


@pytest.mark.parametrize("method", ["odd", "odd_async", "odd_generated", "odd_bound"])
def test_parameters_may_have_any_name(app: AgentApp, agent: str, method: str) -> None:
    """``self``, ``args``, ``task`` and ``kwargs`` are names of parameters like others, also with ``.delay``."""
    params = {"self": 1, "args": [2], "task": 3, "kwargs": 4}
    assert RequestResponseHandler(app).request(agent, method, params, timeout=20) == [1, [2], 3, 4]
    assert app.send_task(f"{agent}.{method}", kwargs=params).get(timeout=20) == [1, [2], 3, 4]
    assert app.send_task(f"{agent}.{method}", (1, [2], 3)).get(timeout=20) == [1, [2], 3, 0]


@pytest.mark.parametrize("params", [["Ada"], [], "Ada", 7], ids=repr)
def test_parameters_are_a_mapping(app: AgentApp, agent: str, params: object) -> None:
    """A list of parameters is refused with the rule, in both APIs."""
    with pytest.raises(InvalidMessage, match=r"params must be a mapping .*'name': 'Ada'"):
        RequestResponseHandler(app).request(agent, "plain", params)  # type: ignore[arg-type]

    async def ask() -> None:
        await aio_api.RequestResponseHandler(app).request(agent, "plain", params)  # type: ignore[arg-type]

    with pytest.raises(InvalidMessage, match="params must be a mapping"):
        asyncio.run(ask())


@pytest.mark.parametrize("method", ["grouped", "grouped_async"])
def test_a_group_of_exceptions_tells_its_members(app: AgentApp, agent: str, method: str) -> None:
    """The caller and the receipt see each member, also those of a group in the group."""
    response = RequestResponseHandler(app).send_request(agent, method, timeout=20)
    assert isinstance(response.error, RemoteError)
    assert response.error.type == "ExceptionGroup"
    receipt_error = ""
    if settled(app, response.message_id):
        receipt_error = MessageBus(app).receipt(response.message_id).error or ""
    for text in (response.error.message, receipt_error):
        assert "two failed (2 sub-exceptions): ValueError: first; ExceptionGroup: inner" in text
        assert "KeyError: 'second'" in text


@pytest.mark.parametrize("method", ["points", "points_async"])
def test_a_result_travels_as_in_a_payload(app: AgentApp, agent: str, method: str) -> None:
    """A dataclass becomes a mapping, bytes and tuples arrive; a set is refused with its path, without retry."""
    requests = RequestResponseHandler(app)
    assert requests.request(agent, method, {"tags": "bytes"}, timeout=20)[0]["tags"] == b"\xff\x00"
    assert requests.request(agent, method, {"tags": "list"}, timeout=20) == [{"x": 1, "tags": ["a"]}]
    before = calls(app, agent).count("points")
    with pytest.raises(RemoteError, match=r"InvalidMessage: the result\[0\]\.tags is a set, which cannot be sent"):
        requests.request(agent, method, {"tags": "set"}, timeout=20)
    assert calls(app, agent).count("points") == before + 1
