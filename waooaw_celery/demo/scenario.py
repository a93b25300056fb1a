"""The job of the demo, seen from outside: given to the orchestrator, watched, and its facts collected."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.cli.group import OPERATOR
from waooaw_celery.demo.failures import (
    InvalidDocument,
    Limited,
    LostAndRecovered,
    exceed_the_rate_limit,
    lose_messages_in_the_broker,
    send_an_invalid_document,
)
from waooaw_celery.demo.processes import Stack
from waooaw_celery.errors import WaooawError
from waooaw_celery.ledger.event_log import EventLog, TopicStatistics
from waooaw_celery.ledger.read.records import Statistics
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON

#: Seconds without any progress after which the job counts as stuck.
STUCK = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overtaking:
    """How the URGENT message went past the others on its agent's queue.

    Attributes:
        agent: whose queue.
        path: the document that it carried.
        sent_as: its place in the order of sending, from 1.
        begun_as: its place in the order in which the agent began them, from 1.
        of: how many messages that agent got.
        overtaken: how many were sent before it and begun after it.
        receipt: the times.
    """

    agent: str
    path: str
    sent_as: int
    begun_as: int
    of: int
    overtaken: int
    receipt: DeliveryReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Everything that the demo shows.

    Attributes:
        documents: what the analysts found of each document.
        skipped: documents left out, and why.
        messages: how many messages each agent got, by status.
        overtaking: how the URGENT document went past the LOW ones.
        thread: the URGENT message and what its handler sent on, from the ledger.
        statistics: the ledger's counts and durations of all messages.
        survey: what the agents answered the dashboard while they worked.
        topics: what was published, and what became of it for each subscriber.
        limited: how a visitor that asked too much was refused.
        torn: what was kept of a message that its handler gave up.
        forgotten: how the broker lost messages, and the ledger did not.
        seconds: how long the job took, without starting and stopping the processes.
    """

    documents: list[dict[str, JSON]]
    skipped: dict[str, str]
    messages: dict[str, dict[str, int]]
    overtaking: Overtaking
    thread: list[DeliveryReceipt]
    statistics: Statistics
    survey: dict[str, dict[str, JSON]]
    topics: list[TopicStatistics]
    limited: Limited
    torn: InvalidDocument
    forgotten: LostAndRecovered
    seconds: float


def run_job(stack: Stack, paths: Sequence[Path], show: Callable[[int, int | None], None]) -> JobResult:
    """Give the job to the orchestrator and return its facts when it is done.

    Args:
        stack: the running processes.
        paths: files and folders with the documents.
        show: called with how many documents are done and how many there are, the latter None at first.

    Raises:
        WaooawError: there are no documents, a process died, or nothing moves any more.
    """
    began = time.monotonic()
    command = MessageBus(stack.app).send(
        Message(from_agent=OPERATOR, to_agent="orchestrator", payload={"paths": [str(path) for path in paths]})
    )
    requests = RequestResponseHandler(stack.app)
    progress, survey = _watch(stack, requests, command, show)
    if not progress["total"]:
        raise WaooawError(f"there are no text documents in {', '.join(map(str, paths))}")
    documents = _results(stack, requests, progress["total"])
    receipts = _settled(stack)
    overtaking = _overtaking(receipts, progress["urgent"])
    trail = MessageAuditTrail(stack.app.ledger)
    return JobResult(
        documents=documents,
        skipped=progress["skipped"],
        messages=_by_agent_and_status(receipts),
        overtaking=overtaking,
        thread=_thread(trail, overtaking.receipt.message_id),
        statistics=trail.statistics(),
        survey=survey,
        topics=EventLog(stack.app.ledger).statistics(),
        limited=exceed_the_rate_limit(stack),
        torn=send_an_invalid_document(stack),
        forgotten=lose_messages_in_the_broker(stack),
        seconds=time.monotonic() - began,
    )


def _watch(
    stack: Stack,
    requests: RequestResponseHandler,
    command: DeliveryReceipt,
    show: Callable[[int, int | None], None],
) -> tuple[JSON, dict[str, dict[str, JSON]]]:
    """Follow the progress until all is done; on the way, have the dashboard ask everyone."""
    survey: dict[str, dict[str, JSON]] = {}
    moved, last = time.monotonic(), None
    while True:
        stack.check()
        progress = requests.request("orchestrator", "progress", priority=Priority.HIGH)
        done, total = progress["done"], progress["total"]
        show(done, total)
        if total is not None and done >= total:
            return progress, survey
        if total is not None and not survey:
            survey = requests.request("dashboard", "survey", priority=Priority.HIGH)
        receipt = stack.app.receipts.get(command.message_id)
        if receipt.status is MessageStatus.FAILED:
            raise WaooawError(f"the orchestrator could not do it: {receipt.error}")
        if (done, total) != last:
            moved, last = time.monotonic(), (done, total)
        elif time.monotonic() - moved > STUCK:
            raise WaooawError(f"nothing has moved for {STUCK:g} s; the logs are in {stack.folder}")
        time.sleep(0.1)


def _results(stack: Stack, requests: RequestResponseHandler, total: int) -> list[dict[str, JSON]]:
    """Return the archivist's reports, when the last one has reached it."""
    found: list[dict[str, JSON]] = []

    def complete() -> bool:
        found[:] = requests.stream("archivist", "results", priority=Priority.LOW)
        return len(found) >= total

    stack.wait_until(complete, "archiving", STUCK)
    return found


def _settled(stack: Stack) -> list[DeliveryReceipt]:
    """Return the receipts of all messages, once nothing more happens to any of them."""
    receipts: list[DeliveryReceipt] = []

    def settled() -> bool:
        receipts[:] = stack.app.receipts.recent(limit=100_000)
        return all(receipt.status.final for receipt in receipts)

    stack.wait_until(settled, "settling", STUCK)
    return receipts


def _thread(trail: MessageAuditTrail, message_id: str) -> list[DeliveryReceipt]:
    return [
        record.receipt
        for record in trail.conversation(message_id)
        if message_id in (record.receipt.message_id, record.causation_id)
    ]


def _by_agent_and_status(receipts: Sequence[DeliveryReceipt]) -> dict[str, dict[str, int]]:
    # The record of an event is no message to anyone.
    said = [receipt for receipt in receipts if receipt.status is not MessageStatus.PUBLISHED]
    counts = Counter((receipt.to_agent, receipt.status.value) for receipt in said)
    table: dict[str, dict[str, int]] = {}
    for (agent, status), count in sorted(counts.items()):
        table.setdefault(agent, {})[status] = count
    return table


def _overtaking(receipts: Sequence[DeliveryReceipt], path: str) -> Overtaking:
    """Work out from the receipts alone whom the URGENT message overtook."""
    urgent = next(receipt for receipt in receipts if receipt.priority is Priority.URGENT)
    queue = [
        receipt
        for receipt in receipts
        if receipt.to_agent == urgent.to_agent and receipt.message_type is MessageType.COMMAND
    ]
    sent = sorted(queue, key=lambda receipt: receipt.sent_at)
    begun = sorted(queue, key=lambda receipt: receipt.delivered_at or receipt.sent_at)
    behind = begun[begun.index(urgent) + 1 :]
    return Overtaking(
        agent=urgent.to_agent,
        path=path,
        sent_as=sent.index(urgent) + 1,
        begun_as=begun.index(urgent) + 1,
        of=len(queue),
        overtaken=sum(receipt.sent_at < urgent.sent_at for receipt in behind),
        receipt=urgent,
    )
