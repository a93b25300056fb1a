"""Handlers with ``once=True``: the effect happens once, whatever happens to messages and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from support import Broker, queue_length, settled, until

from waooaw_celery import Agent, AgentApp, Message, MessageBus, MessageStatus, MessageType, RequestResponseHandler
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.testing.embedded import end_all
from waooaw_celery.worker.health.startup_checks import check_once

Start = Callable[..., str]

pytestmark = pytest.mark.usefixtures("count_effects")


@pytest.fixture
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture
def killer(tmp_path: Path) -> Path:
    """The path of a file that makes the next worker process kill itself after its commit."""
    return tmp_path / "kill-after-commit"


@pytest.fixture
def start(broker: Broker, app: AgentApp, killer: Path) -> Iterator[Start]:
    """Start an agent with ``once=True`` handlers, and return its name."""
    processes: list[Any] = []

    def _start(name: str | None = None, **options: Any) -> str:
        name = name or broker.name()
        env = {"KILL_AFTER_COMMIT": str(killer)}
        processes.append(broker.start(name, app, module="exactly_once_probe", env=env, **options))
        return name

    yield _start
    end_all(processes)


def command(to: str, **do: Any) -> Message:
    """Return a command with a unique label."""
    return Message(from_agent="tests", to_agent=to, payload={"label": str(uuid4()), **do})


def label(message: Message) -> str:
    """Return the label of the effects of a message."""
    payload: Any = message.payload
    return str(payload["label"])


def publish_again(app: AgentApp, message: Message) -> None:
    """Publish a message again with the same id, as a publisher does that got no confirmation."""
    app.publisher.publish_recorded(
        [
            (
                HandlerName(message.to_agent, "command"),
                app.message_factory.complete(HandlerName(message.to_agent, "command"), message),
            )
        ]
    )


def test_two_workers_with_the_same_message_have_one_effect(
    app: AgentApp, start: Start, count_effects: Callable[[str], int], tmp_path: Path
) -> None:
    """The second worker waits for the first one's transaction, and finds its note."""
    gate = tmp_path / "gate"
    name = start()
    start(name, node=f"{name}-second")
    message = command(name, wait_for=str(gate))
    MessageBus(app).send(message)
    until(lambda: Path(f"{gate}.begun").exists(), "the first attempt")
    publish_again(app, message)

    until(lambda: queue_length(app, name) == 0, "the second delivery")
    gate.touch()
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    next_message = command(name)
    MessageBus(app).send(next_message)
    assert settled(app, next_message.message_id) is MessageStatus.HANDLED
    assert count_effects(label(message)) == 1


def test_a_process_that_dies_after_the_commit_leaves_one_effect(
    app: AgentApp, start: Start, count_effects: Callable[[str], int], killer: Path
) -> None:
    """Its end was not reported, so the message is redelivered, and the effect is found."""
    name = start()
    killer.touch()
    message = command(name)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert not killer.exists()
    assert count_effects(label(message)) == 1
    assert MessageBus(app).receipt(message.message_id).attempts == 2


def test_the_answer_is_the_result_of_the_committed_attempt(
    app: AgentApp, start: Start, count_effects: Callable[[str], int], killer: Path
) -> None:
    """A request whose first process died after the commit is answered with that process's result."""
    name = start()
    killer.touch()
    booked = str(uuid4())
    answer: Any = RequestResponseHandler(app).request(name, "book", {"label": booked}, timeout=30)
    assert answer["booked"] == booked
    with app.database.begin("read the effect") as connection:
        pids = connection.scalars(text("SELECT pid FROM effects WHERE label = :label"), {"label": booked}).all()
    assert pids == [answer["pid"]]


@pytest.mark.parametrize("commit", [False, True])
def test_a_handler_that_fails_has_no_effect(
    commit: bool, app: AgentApp, start: Start, count_effects: Callable[[str], int]
) -> None:
    """Its own commit does not count, and the messages that it sent are not sent."""
    name = start()
    receiver = start()
    message = command(name, fail="no", send_to=receiver, commit=commit)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    assert count_effects(label(message)) == 0
    with app.database.begin("read the messages that it sent") as connection:
        caused = connection.scalar(
            text("SELECT count(*) FROM waooaw_messages WHERE causation_id = :id"), {"id": message.message_id}
        )
    assert caused == 0


def test_only_the_successful_attempt_has_an_effect(
    app: AgentApp, start: Start, count_effects: Callable[[str], int]
) -> None:
    """Failed attempts are rolled back, and only the last one's message is sent."""
    name, receiver = start(), start()
    message = command(name, fail_times=2, send_to=receiver)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert count_effects(label(message)) == 1
    with app.database.begin("read the messages that it sent") as connection:
        sent = connection.scalars(
            text("SELECT message_id FROM waooaw_messages WHERE causation_id = :id"), {"id": message.message_id}
        ).all()
    assert len(sent) == 1
    assert settled(app, sent[0]).final


def test_a_session_outside_such_a_handler_is_an_error(app: AgentApp, start: Start) -> None:
    """The error names ``once=True``."""
    name = start()
    assert "once=True" in str(RequestResponseHandler(app).request(name, "carelessly", timeout=30))


def test_handlers_that_cannot_run_once_are_refused(tmp_path: Path) -> None:
    """Those are coroutines, because a session is for one thread, and handlers without a PostgreSQL ledger."""
    with closing(AgentApp("alone", broker="redis://127.0.0.1:1")) as app:
        agent = Agent("alone", app)

        async def work(message: Message) -> None:
            """Do nothing."""

        with pytest.raises(ConfigurationError, match="plain def"):
            agent.on(MessageType.COMMAND, once=True)(work)
        check_once(app)
        agent.on(MessageType.QUERY, once=True)(lambda message: None)
        with pytest.raises(ConfigurationError, match=r"alone\.query.*PostgreSQL"):
            check_once(app)
