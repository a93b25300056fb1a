"""The job of the demo: give it to the orchestrator, follow its progress, and collect the facts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.cli.group import OPERATOR
from waooaw_celery.demo.processes import Stack
from waooaw_celery.errors import WaooawError
from waooaw_celery.ledger.events.event_log import EventLog, TopicStatistics
from waooaw_celery.ledger.read.records import Statistics
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RECORDS, MessageStatus, MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON

#: Seconds without any progress after which the job counts as stuck.
STUCK_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overtaking:
    """How the URGENT message overtook others in its agent's queue.

    Attributes:
        agent: the agent that owns the queue.
        path: the document in the message.
        sent_as: the message's position in the order of sending, from 1.
        begun_as: its position in the order in which the agent began to handle them, from 1.
        of: how many documents were sent to that agent.
        overtaken: how many were sent before it and begun after it.
        receipt: its receipt, with the times.
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
    """The facts of the finished job.

    Attributes:
        documents: the analysts' report of each document.
        skipped: documents that were skipped, and why.
        messages: how many messages each agent got, by status.
        overtaking: how the URGENT document overtook LOW ones.
        thread: the URGENT message and the messages that its handler sent, from the ledger.
        statistics: the ledger's counts and durations of all messages.
        survey: what the agents answered the dashboard while they worked.
        topics: the published events, and what became of them for each subscriber.
        seconds: how many seconds the job took, without starting and stopping the processes.
    """

    documents: list[dict[str, JSON]]
    skipped: dict[str, str]
    messages: dict[str, dict[str, int]]
    overtaking: Overtaking
    thread: list[DeliveryReceipt]
    statistics: Statistics
    survey: dict[str, dict[str, JSON]]
    topics: list[TopicStatistics]
    seconds: float


def run_job(stack: Stack, paths: Sequence[Path], show: Callable[[int, int | None], None]) -> JobResult:
    """Give the job to the orchestrator and return its facts when it is done.

    Args:
        stack: the running processes.
        paths: files and folders with the documents.
        show: called with the number of measured documents and the number of all, which is None at first.

    Raises:
        WaooawError: there are no documents, a process ended, or there was no progress for a minute.
    """
    began = time.monotonic()
    command = MessageBus(stack.app).send(
        Message(from_agent=OPERATOR, to_agent="orchestrator", payload={"paths": [str(path) for path in paths]})
    )
    requests = RequestResponseHandler(stack.app)
    progress, survey = _follow(stack, requests, command, show)
    if not progress["total"]:
        raise WaooawError(f"there are no text documents in {', '.join(map(str, paths))}")
    documents = _wait_for_reports(stack, requests, progress["total"])
    receipts = _wait_for_final_receipts(stack)
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
        seconds=time.monotonic() - began,
    )


def _follow(
    stack: Stack,
    requests: RequestResponseHandler,
    command: DeliveryReceipt,
    show: Callable[[int, int | None], None],
) -> tuple[JSON, dict[str, dict[str, JSON]]]:
    """Follow the progress until all is measured; meanwhile, let the dashboard ask all agents once."""
    survey: dict[str, dict[str, JSON]] = {}
    last_progress_at, last = time.monotonic(), None
    while True:
        stack.check()
        progress = requests.request("orchestrator", "progress", timeout=STUCK_SECONDS, priority=Priority.HIGH)
        done, total = progress["done"], progress["total"]
        show(done, total)
        if total is not None and done >= total:
            return progress, survey
        if total is not None and not survey:
            survey = requests.request("dashboard", "survey", timeout=STUCK_SECONDS, priority=Priority.HIGH)
        receipt = stack.app.receipts.get(command.message_id)
        if receipt.status is MessageStatus.FAILED:
            raise WaooawError(f"the orchestrator failed: {receipt.error}")
        if (done, total) != last:
            last_progress_at, last = time.monotonic(), (done, total)
        elif time.monotonic() - last_progress_at > STUCK_SECONDS:
            raise WaooawError(f"no progress for {STUCK_SECONDS:g} s; the logs are in {stack.folder}")
        time.sleep(0.1)


def _wait_for_reports(stack: Stack, requests: RequestResponseHandler, total: int) -> list[dict[str, JSON]]:
    """Return the archivist's reports when it has all of them."""
    reports: list[dict[str, JSON]] = []

    def is_complete() -> bool:
        reports[:] = requests.stream("archivist", "results", priority=Priority.LOW)
        return len(reports) >= total

    stack.wait_until(is_complete, "storing the reports", STUCK_SECONDS)
    return reports


def _wait_for_final_receipts(stack: Stack) -> list[DeliveryReceipt]:
    """Return the receipts of all messages when each has its final status."""
    receipts: list[DeliveryReceipt] = []

    def are_final() -> bool:
        receipts[:] = stack.app.receipts.recent(limit=100_000)
        return all(receipt.status.final for receipt in receipts)

    stack.wait_until(are_final, "handling the last messages", STUCK_SECONDS)
    return receipts


def _thread(trail: MessageAuditTrail, message_id: str) -> list[DeliveryReceipt]:
    """Return the receipts of a message and of the messages that its handler sent."""
    return [
        record.receipt
        for record in trail.conversation(message_id)
        if message_id in (record.receipt.message_id, record.causation_id)
    ]


def _by_agent_and_status(receipts: Sequence[DeliveryReceipt]) -> dict[str, dict[str, int]]:
    # Of an event, the messages to its subscribers are counted; of a request, not its answer.
    messages = [receipt for receipt in receipts if receipt.status not in RECORDS]
    counts = Counter((receipt.to_agent, receipt.status.value) for receipt in messages)
    table: dict[str, dict[str, int]] = {}
    for (agent, status), count in sorted(counts.items()):
        table.setdefault(agent, {})[status] = count
    return table


def _overtaking(receipts: Sequence[DeliveryReceipt], path: str) -> Overtaking:
    """Return, from the receipts alone, which messages the URGENT one overtook."""
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
