"""Handlers with once=True: the effect happens once, whatever happens to messages and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from support import Broker, settled, until

from waooaw_celery import Agent, AgentApp, Message, MessageBus, MessageStatus, MessageType, RequestResponseHandler
from waooaw_celery.embedded import end_all
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import HandlerName, agent_queue, queue_depth
from waooaw_celery.worker.health.startup_checks import check_once

Start = Callable[..., str]


@pytest.fixture
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture(autouse=True)
def effects(app: AgentApp) -> Callable[[str], int]:
    """Count the effects of a label."""
    with app.database.begin("make a table") as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effects (label text, pid int)"))

    def count(label: str) -> int:
        with app.database.begin("count effects") as connection:
            found = connection.scalar(text("SELECT count(*) FROM effects WHERE label = :label"), {"label": label})
            return int(found or 0)

    return count


@pytest.fixture
def killer(tmp_path: Path) -> Path:
    """A file that kills the next process which has committed."""
    return tmp_path / "kill-after-commit"


@pytest.fixture
def start(broker: Broker, app: AgentApp, killer: Path) -> Iterator[Start]:
    """Start such an agent and return its name."""
    processes: list[Any] = []

    def _start(name: str | None = None, **options: Any) -> str:
        name = name or broker.name()
        env = {"KILL_AFTER_COMMIT": str(killer)}
        processes.append(broker.start(name, app, module="once_probe", env=env, **options))
        return name

    yield _start
    end_all(processes)


def command(to: str, **do: Any) -> Message:
    """Return a message with a label of its own."""
    return Message(from_agent="tests", to_agent=to, payload={"label": str(uuid4()), **do})


def label(message: Message) -> str:
    """Return the label of a message's effects."""
    payload: Any = message.payload
    return str(payload["label"])


def push_again(app: AgentApp, message: Message) -> None:
    """Publish a message once more under the same id, as a publisher does whose confirmation was lost."""
    app.publish_written(
        [
            (
                HandlerName(message.to_agent, "command"),
                app.complete(HandlerName(message.to_agent, "command"), message),
            )
        ]
    )


def test_two_workers_with_the_same_message_have_one_effect(
    app: AgentApp, start: Start, effects: Callable[[str], int], tmp_path: Path
) -> None:
    """The second one waits for the end of the first, and finds what it did."""
    gate = tmp_path / "gate"
    name = start()
    start(name, node=f"{name}-second")
    message = command(name, wait_for=str(gate))
    MessageBus(app).send(message)
    until(lambda: Path(f"{gate}.begun").exists(), "the beginning")
    push_again(app, message)

    def waiting() -> int:
        with app.connection_for_write() as connection:
            return queue_depth(connection, agent_queue(name)).total

    until(lambda: waiting() == 0, "the other worker's beginning")
    gate.touch()
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    after = command(name)
    MessageBus(app).send(after)
    assert settled(app, after.message_id) is MessageStatus.HANDLED
    assert effects(label(message)) == 1


def test_a_process_that_dies_after_the_commit_leaves_one_effect(
    app: AgentApp, start: Start, effects: Callable[[str], int], killer: Path
) -> None:
    """Nobody was told that it had ended, so the message comes again, and its effect is found."""
    name = start()
    killer.touch()
    message = command(name)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert not killer.exists()
    assert effects(label(message)) == 1
    assert MessageBus(app).receipt(message.message_id).attempts == 2


def test_the_answer_is_the_one_of_the_effect(
    app: AgentApp, start: Start, effects: Callable[[str], int], killer: Path
) -> None:
    """A request whose first process died after the commit is answered with what that one returned."""
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
    commit: bool, app: AgentApp, start: Start, effects: Callable[[str], int]
) -> None:
    """Also when it said commit: that is not its to say. What it sent is not sent either."""
    name = start()
    receiver = start()
    message = command(name, fail="no", send_to=receiver, commit=commit)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    assert effects(label(message)) == 0
    with app.database.begin("look for what it sent") as connection:
        caused = connection.scalar(
            text("SELECT count(*) FROM waooaw_messages WHERE causation_id = :id"), {"id": message.message_id}
        )
    assert caused == 0


def test_only_the_attempt_that_ends_well_has_an_effect(
    app: AgentApp, start: Start, effects: Callable[[str], int]
) -> None:
    """Retries begin anew, and what the last one sent is sent once."""
    name, receiver = start(), start()
    message = command(name, fail_times=2, send_to=receiver)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert effects(label(message)) == 1
    with app.database.begin("look for what it sent") as connection:
        sent = connection.scalars(
            text("SELECT message_id FROM waooaw_messages WHERE causation_id = :id"), {"id": message.message_id}
        ).all()
    assert len(sent) == 1
    assert settled(app, sent[0]).final


def test_outside_of_such_a_handler_there_is_no_session(app: AgentApp, start: Start) -> None:
    """The error says where there is one."""
    name = start()
    assert "once=True" in str(RequestResponseHandler(app).request(name, "carelessly", timeout=30))


def test_what_cannot_be_once_is_refused(tmp_path: Path) -> None:
    """A coroutine, since a session is for one thread; and without a database in PostgreSQL."""
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
