"""A ledger that real agents made, with hostile text wherever text may stand, for the tests of the console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.agents import EventBus, Workflows
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.workflows.states import WorkflowStatus

#: Would run as a script, close a tag or attribute, or be evaluated, wherever it is not escaped.
HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>{{7*7}}\x1b[31m</pre>&amp;"
#: The same for an identity, which has no spaces.
IDENTITY = "<script>window.hacked=1</script>\"'>{{7*7}}"
#: An id that a person chose, as for an order.
ORDER = "order-17"


@dataclass(frozen=True)
class World:
    """What the tests know of the ledger.

    Attributes:
        broker, app: the servers, and an application that uses them.
        agent: the agent.
        handled, failed, request, event: ids of messages.
        letter: id of the dead letter of the failed message.
        workflow, failed_workflow: a workflow that waits for the signal ``approval``, and one that failed.
        topic: the topic of the event.
    """

    broker: Broker
    app: AgentApp
    agent: str
    handled: str
    failed: str
    request: str
    event: str
    letter: str
    workflow: str
    failed_workflow: str
    topic: str

    @property
    def env(self) -> dict[str, str]:
        """The variables under which a process uses the same servers."""
        return {
            "CELERY_BROKER_URL": self.broker.url,
            "CELERY_RESULT_BACKEND": self.broker.redis_url,
            "WAOOAW_DATABASE_URL": str(self.broker.database_url),
            "WAOOAW_SPOOL_FOLDER": str(self.broker.spool_folder),
        }


@contextmanager
def console_world(redis_url: str, database_url: str, folder: Path) -> Iterator[World]:
    """Run an agent, and let it make a ledger."""
    broker = Broker(redis_url, redis_url, folder, database_url)
    app = broker.app(waooaw_rate_limit="1000/second", waooaw_rate_limit_storage="redis")
    schema.upgrade(app.database)
    topic = f"t{uuid4().hex[:8]}"
    name = broker.name()
    env = {"PROBE_TOPIC": f"{topic}.paid", "PROBE_HOSTILE": HOSTILE}
    try:
        with broker.running(name, app, module="console_probe", env=env):
            yield _fill(broker, app, name, topic)
    finally:
        app.close()
        broker.clean()


def _fill(broker: Broker, app: AgentApp, name: str, topic: str) -> World:
    bus, workflows = MessageBus(app), Workflows(app)
    handled = bus.send(
        Message(
            from_agent="shop", to_agent=name, payload={"text": HOSTILE, HOSTILE: 1}, correlation_id=ORDER,
            identity=IDENTITY,
        )
    ).message_id  # fmt: skip
    failed = bus.send(Message(from_agent="shop", to_agent=name, payload={"fail": HOSTILE})).message_id
    settled(app, handled)
    assert settled(app, failed) is MessageStatus.FAILED
    until(lambda: app.dead_letters.list(message_id=failed), "the dead letter")
    app.dead_letters.add(f"agent.{name}", HOSTILE, b"\xff" + HOSTILE.encode())
    assert RequestResponseHandler(app).request(name, "echo", {"value": HOSTILE}, timeout=20) == HOSTILE
    published = EventBus(app).publish(f"{topic}.paid", {"note": HOSTILE}, from_agent="shop")
    for receipt in published.receipts.values():
        settled(app, receipt.message_id)
    [request] = [
        record.receipt.message_id
        for record in app_trail(app).query(to_agent=name).records
        if record.receipt.handler == "echo"
    ]
    workflow = workflows.start(f"{name}.approve", {"text": HOSTILE}, workflow_id=f"approve-{topic}")
    failing = workflows.start(f"{name}.break_down", {"text": HOSTILE}, workflow_id=f"break-{topic}")
    until(lambda: workflows.get(workflow.workflow_id).waits_for, "the workflow to wait")
    until(lambda: workflows.get(failing.workflow_id).status is WorkflowStatus.FAILED, "the workflow to fail")
    Retention(app.database).hold(HoldKind.MESSAGE, handled, HOSTILE.replace("\x1b", ""))
    app.restrictions.pause("noisy", by="tests", reason=HOSTILE)
    return World(
        broker=broker,
        app=app,
        agent=name,
        handled=handled,
        failed=failed,
        request=request,
        event=published.event_id,
        letter=app.dead_letters.list(message_id=failed)[0].id,
        workflow=workflow.workflow_id,
        failed_workflow=failing.workflow_id,
        topic=topic,
    )


def app_trail(app: AgentApp) -> MessageAuditTrail:
    """Return the queries of an application's ledger."""
    return MessageAuditTrail(app.ledger)
