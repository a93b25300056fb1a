"""What a worker's log, Celery's events and remote control show of messages, in every pool and on both brokers."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import RemoteError
from waooaw_celery.testing.embedded import end

CONFIDENTIAL = "born-1815-in-london"
FORGED = "[2026-11-28 23:00:00: ERROR] forged"
HOSTILE = f"first\n{FORGED} \x1b[2J\x9b31m\u202e"
#: Requests that fail with the text that they are given.
FAILING = ("fail", "fail_later", "parts", "later_parts")


@contextmanager
def running(broker: Broker, *options: str, **settings: object) -> Iterator[tuple[AgentApp, str, Path]]:
    """Run a worker of the log probe; yields an application, the agent's name and the worker's log."""
    app, name = broker.app(), broker.name()
    worker = broker.start(name, app, *options, module="log_probe", **settings)
    try:
        yield app, name, broker.folder / f"{name}.log"
    finally:
        end(worker)
        app.close()


@contextmanager
def capturing_events(app: AgentApp) -> Iterator[list[dict[str, Any]]]:
    """Collect Celery's events, as Flower does."""
    events: list[dict[str, Any]] = []
    connection = app.connection_for_read()
    receiver = app.events.Receiver(connection, handlers={"*": events.append})
    thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
    thread.start()
    try:
        until(lambda: events, "a heartbeat of the worker")
        yield events
    finally:
        receiver.should_stop = True
        thread.join(10)
        connection.release()


def exercise(app: AgentApp, name: str, text: str) -> None:
    """Have the probe return, raise, retry, reject and ignore a text."""
    requests = RequestResponseHandler(app)
    for method in ("give", "give_later"):
        assert requests.request(name, method, {"value": [text]}, timeout=20) == [text]
    for method in FAILING[:2]:
        with pytest.raises(RemoteError):
            requests.request(name, method, {"text": text}, timeout=20)
    for method in FAILING[2:]:
        with requests.stream(name, method, {"text": text}, timeout=20) as stream, pytest.raises(RemoteError):
            list(stream)
    bus = MessageBus(app)
    for do in ("reject", "ignore", "retry"):
        message = Message(from_agent="tests", to_agent=name, payload={do: text})
        bus.send(message)
        assert settled(app, message.message_id).final


POOLS = (
    pytest.param("valkey", ("-P", "prefork", "-l", "DEBUG"), id="valkey-prefork"),
    pytest.param("rabbitmq", ("-P", "threads", "-l", "DEBUG"), id="rabbitmq-threads", marks=pytest.mark.rabbitmq),
    pytest.param("valkey", ("-P", "solo", "-l", "DEBUG"), id="valkey-solo"),
    pytest.param("valkey", ("-P", "gevent", "-l", "INFO"), id="valkey-gevent"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), POOLS)
def test_payloads_results_and_error_texts_are_hidden(
    request: pytest.FixtureRequest, kind: str, options: tuple[str, ...]
) -> None:
    """Neither the log nor Celery's events show an argument, a result or an error's text; its class is shown."""
    broker = request.getfixturevalue(f"{kind}_broker")
    with running(broker, *options, "-E") as (app, name, log), capturing_events(app) as events:
        exercise(app, name, CONFIDENTIAL)
        until(lambda: sum(event["type"] == "task-failed" for event in events) >= 4, "the events of failures")
        until(lambda: any(event["type"] == "task-retried" for event in events), "the event of the retry")
        text = log.read_text()
        assert CONFIDENTIAL not in text
        assert CONFIDENTIAL not in str(events)
        assert "succeeded in" in text
        assert re.search(r"fail\[.*raised unexpected: Talkative: …", text)
        assert "in fail" in text, "the log has the frames of a traceback"
        assert {event["exception"] for event in events if event["type"] == "task-failed"} >= {"Talkative: …"}
        assert any(event["type"] == "task-succeeded" for event in events)


@pytest.mark.slow
def test_remote_control_hides_arguments(valkey_broker: Broker, tmp_path: Path) -> None:
    """`celery inspect active` shows no argument of a handler, also of a message that plain Celery sent."""
    gate = tmp_path / "gate"
    with running(valkey_broker, "-l", "INFO", "-E") as (app, name, log), capturing_events(app) as events:
        payload = {"gate": str(gate), "name": CONFIDENTIAL}
        from celery import Celery

        plain = Celery(broker=valkey_broker.url)
        plain.send_task(f"{name}.command", args=(payload,), queue=f"agent.{name}")
        inspect = app.control.inspect(timeout=5)
        active: list[Any] = []

        def is_active() -> bool:
            active.extend(itertools.chain(*(inspect.active() or {}).values()))
            return any(name in str(each) for each in active)

        until(is_active, "the running handler")
        gate.touch()
        until(lambda: "succeeded in" in log.read_text(), "the end of the handler")
        assert CONFIDENTIAL not in str(active)
        assert CONFIDENTIAL not in str(events)
        assert CONFIDENTIAL not in log.read_text()
        plain.close()


@pytest.mark.slow
def test_a_setting_shows_them(valkey_broker: Broker) -> None:
    """With `waooaw_log_payloads`, the log has results and error texts, and no line of it is forged."""
    with running(valkey_broker, "-l", "INFO", waooaw_log_payloads=True) as (app, name, log):
        exercise(app, name, HOSTILE)
        until(lambda: "later_parts" in log.read_text(), "the log")
        assert "forged" in log.read_text()
        assert_no_line_is_forged(log)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_handlers_log_is_escaped(valkey_broker: Broker, pool: str) -> None:
    """A payload that a handler logs or prints, and an exception that it logs, forge no line and no color."""
    with running(valkey_broker, "-P", pool, "-l", "INFO") as (app, name, log):
        message = Message(from_agent="tests", to_agent=name, payload={"log": HOSTILE})
        MessageBus(app).send(message)
        assert settled(app, message.message_id) is MessageStatus.HANDLED
        until(lambda: "caught" in log.read_text(), "the log")
        text = log.read_text()
        for source in ("task: first", "module: first", "print: first", "Talkative: first"):
            assert source in text
        assert_no_line_is_forged(log)


def assert_no_line_is_forged(log: Path) -> None:
    """Check that no line begins as a payload wants, and that nothing commands a terminal."""
    text = log.read_text()
    assert not [line for line in text.split("\n") if line.startswith(FORGED)]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
