"""An agent with ``once=True`` handlers, whose effects are rows in the ledger's database. PROBE_NAME names it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from waooaw_celery import Agent, AgentApp, Message, MessageType
from waooaw_celery.app.components import Components
from waooaw_celery.ledger.outbox import Outbox


class InterruptedOutbox(Outbox):
    """An outbox whose process kills itself, or pauses, after a commit if a file exists."""

    def relay(self, session: Session) -> None:
        """Publish the committed messages of a session, or die before that."""
        killer = Path(os.environ["KILL_AFTER_COMMIT"])
        if killer.exists():
            killer.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        hold = Path(os.environ.get("HOLD_AFTER_COMMIT", "/nowhere"))
        if hold.exists():
            hold.rename(f"{hold}.committed")
            time.sleep(60)
        super().relay(session)


class InterruptedComponents(Components):
    """Components with such an outbox."""

    @cached_property
    def outbox(self) -> Outbox:
        """The outbox."""
        return InterruptedOutbox(self.ledger, self.publisher.publish_recorded)


app = AgentApp("once")
app.components = InterruptedComponents(app)
agent = Agent(os.environ["PROBE_NAME"], app)


def _effect(label: str) -> None:
    agent.session.execute(
        text("INSERT INTO effects (label, pid) VALUES (:label, :pid)"), {"label": label, "pid": os.getpid()}
    )


@agent.on(MessageType.COMMAND, once=True, bind=True)
def command(self: Any, message: Message) -> None:
    do: Any = message.payload
    _effect(do["label"])
    if "refused" in do:
        with suppress(DBAPIError):
            agent.session.execute(text("SELECT 1 / 0"))
    if "send_to" in do:
        agent.send(do["send_to"], {"by": do["label"]}, session=agent.session)
    if "cut" in do and not Path(do["cut"]).exists():
        Path(do["cut"]).touch()
        agent.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    time.sleep(do.get("nap", 0))
    if do.get("commit"):
        agent.session.commit()
    if "wait_for" in do:
        Path(do["wait_for"] + ".begun").touch()
        deadline = time.monotonic() + 60
        while not Path(do["wait_for"]).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    if do.get("fail_times", 0) > self.request.retries:
        raise self.retry(exc=TimeoutError("not yet"), countdown=0, max_retries=5)
    if "fail" in do:
        raise ValueError(do["fail"])


@agent.on(MessageType.QUERY, once=True, time_limit=2)
def query(message: Message) -> None:
    do: Any = message.payload
    _effect(do["label"])


@agent.on(MessageType.ACK, once=True, soft_time_limit=2, time_limit=60)
def ack(message: Message) -> None:
    do: Any = message.payload
    _effect(do["label"])


@agent.method(once=True)
def book(label: str) -> dict[str, Any]:
    _effect(label)
    return {"booked": label, "pid": os.getpid()}


@agent.method(once=True)
def nap_and_book(label: str, pause: float) -> None:
    """Sleep in the transaction, perhaps until the caller has gone."""
    _effect(label)
    time.sleep(pause)


@agent.method
def carelessly() -> str:
    try:
        return str(agent.session)
    except LookupError as error:
        return str(error)
    except ValueError as error:
        return str(error)


@agent.method
def status(message_id: str) -> str:
    return app.receipts.get(message_id).status.value
