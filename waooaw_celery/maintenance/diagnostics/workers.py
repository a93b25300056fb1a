"""The living workers: their handlers, their ledgers, and whether they take what waits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.waiting import queue_depths
from waooaw_celery.maintenance.diagnostics.finding import Finding, State, fail, ok
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.wording import counted, ledger_name
from waooaw_celery.store.agents.worker_handlers import partial_handlers
from waooaw_celery.worker.health.heartbeat import MAX_MISSED_HEARTBEATS

#: How to correct processes with different ledgers.
_SAME_LEDGER = "Set the same waooaw_database_url (or WAOOAW_DATABASE_URL) for all processes"
#: What to do about each state of an agent's workers.
_STATES = {
    "STALLED": "a worker makes no progress: its log has its stacks. Start it again",
    "refusing": "a worker leaves messages in the queue: see the findings about queues",
    "not taking": "a worker takes no messages: its log says why, such as a ledger that does not answer",
}


def handlers_of_the_workers(app: AgentApp) -> Iterator[Finding]:
    """Find the agents of which two versions run: some of their workers lack handlers that others have.

    Raises:
        StoreUnavailable: the agent registry does not answer.
    """
    for record in app.registry.all():
        partial = partial_handlers(record.worker_handlers)
        if not partial:
            continue
        owners = "; ".join(f"only {', '.join(workers)} has {name}" for name, workers in partial.items())
        sentence = (
            f"the workers of {record.name} have different handlers: {owners}. The others hand its messages back. "
            "Stop the workers of the old version when the new one runs"
        )
        yield Finding(name=f"handlers of {record.name}", state=State.WARN, sentence=sentence)


def ledgers_of_the_workers(app: AgentApp) -> Iterator[Finding]:
    """Compare the ledger that each living worker writes to with that of this process.

    Raises:
        StoreUnavailable: the agent registry does not answer.
    """
    own = app.ledger_id
    yield Finding(name="ledger", state=State.OK, sentence=f"this process writes to {ledger_name(own)}")
    records = app.registry.everywhere()
    ledgers = {worker: ledger for record in records for worker, ledger in record.ledgers.items()}
    for worker, ledger in sorted(ledgers.items()):
        sentence = f"{worker} writes to {ledger_name(ledger)}"
        if ledger != own:
            sentence += f", and this process to {ledger_name(own)}. {_SAME_LEDGER}"
        state = State.OK if ledger == own else State.WARN
        yield Finding(name=f"ledger of {worker}", state=state, sentence=sentence)
    refused = {worker: report.get("refused") for record in records for worker, report in record.reports.items()}
    for worker, queues in sorted(refused.items()):
        for queue, reason in (queues or {}).items():
            sentence = f"{worker} leaves messages in {queue}: {reason}"
            yield Finding(name=f"queue {queue}", state=State.FAIL, sentence=sentence)


def workers_for_what_waits(app: AgentApp) -> Iterator[Finding]:
    """Find the agents for which messages wait and no worker lives, and those whose workers are in trouble.

    Raises:
        StoreUnavailable: the agent registry does not answer.
        BrokerUnavailable: the broker does not answer.
    """
    records = app.registry.everywhere()
    depths = queue_depths(app, [agent_queue(record.name) for record in records], read=False)
    within = timedelta(seconds=app.settings.heartbeat_seconds * MAX_MISSED_HEARTBEATS)
    living = waiting = 0
    for record, depth in zip(records, depths, strict=True):
        name, state = f"workers of {record.name}", record.state(within)
        living += len(record.workers)
        waiting += depth.total
        if depth.total and not record.workers:
            what = counted(depth.total, "message")
            sentence = f"{what} for {record.name} wait, and no worker of it is alive. Start one; see why it ended"
            yield fail(name, sentence)
        elif record.workers and state in _STATES:
            yield fail(name, f"{record.name} is {state}: {_STATES[state]}")
    sentence = f"{counted(len(records), 'agent')}, {counted(living, 'living worker')}, "
    yield ok("agents", f"{sentence}{counted(waiting, 'waiting message')}")
