"""The story of the demo: who the agents are, what to look at, and what happened, in tables of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.text import Text

from waooaw_celery.cli.output.table import show_table
from waooaw_celery.demo.failures import DocumentRejected, Failures, MessagesRecovered, RateLimitReached
from waooaw_celery.demo.hanging_agent import AgentHung
from waooaw_celery.demo.health_checks import HealthChecked
from waooaw_celery.demo.killed_workflow import WorkflowKilled
from waooaw_celery.demo.outside_client import OutsideAnswer
from waooaw_celery.demo.scenario import JobResult, Overtaking
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.log.escaping import escaped

#: Documents and key terms that are shown; the JSON has all of them.
SHOWN_DOCUMENTS, SHOWN_TERMS = 8, 3
#: Characters in a line.
WIDTH = 80
#: Characters of a document's path that are shown.
PATH_WIDTH = 36

_INTRODUCTION = """
Five agents measure the documents of a folder. They talk to each other over
Celery, and each has a worker process and a queue of its own:

  orchestrator  sends each document to one of the two analysts
  analyst-1     measures a document: its words, readability and key terms
  analyst-2     does the same
  archivist     stores the analysts' reports
  dashboard     asks all agents for their status, and subscribes to events

Look at these things below:

  - an URGENT message overtakes LOW ones in the same queue;
  - the ledger knows each message, and what it led to;
  - five failures that the demo causes on purpose lose nothing.
"""


def show_introduction(screen: Console) -> None:
    """Print who the agents are, and what to look at."""
    screen.print(_INTRODUCTION, markup=False, highlight=False)


def show_job(job: JobResult, screen: Console) -> None:
    """Print what the agents did."""
    _show_documents(job, screen)
    _show_messages(job, screen)
    _show_overtaking(job.overtaking, screen)
    _show_thread(job, screen)
    _show_topics(job, screen)
    _show_survey(job, screen)


def show_failures(failures: Failures, screen: Console) -> None:
    """Print what happened in the failure scenarios."""
    _show_rate_limit(failures.rate_limit, screen)
    _show_invalid_document(failures.invalid_document, screen)
    _show_killed_workflow(failures.killed_workflow, screen)
    _show_hanging_agent(failures.hanging_agent, screen)
    _show_lost_messages(failures.lost_messages, screen)


def show_health(checked: Sequence[HealthChecked], screen: Console) -> None:
    """Print what the agents answered to health checks after the failures."""
    rows = [(check.agent, check.url, check.status) for check in checked]
    _show_table(_heading(12, "All agents are ready again"), ("agent", "health check", "answer"), rows)
    _say(
        screen,
        "Kubernetes and Docker ask for this. The same ports serve metrics for Prometheus, if prometheus-client is "
        "installed.",
    )


def show_outside(found: OutsideAnswer | None, screen: Console) -> None:
    """Print what a client of A2A was told, and what the ledger has of it."""
    if found is None:
        _say(screen, "A client of A2A would ask an agent here: `pip install 'waooaw-celery[a2a]'`.")
        return
    rows = [
        ("card", found.url),
        ("skills", ", ".join(found.skills)),
        ("answer", found.answer),
        ("in the ledger", f"{found.task_id}, {found.status}"),
        ("from", f"{found.from_agent}, {found.identity}"),
    ]
    _show_table(_heading(13, "A client of A2A asks an agent"), ("what", "found"), rows)
    _say(
        screen,
        "The client knows only A2A. `waooaw serve` made a request of its message: the id of its task is that of "
        "the message in the ledger, which says by which protocol it came, and who sent it.",
    )


def _show_documents(job: JobResult, screen: Console) -> None:
    longest = sorted(job.documents, key=lambda report: -report["words"])
    rows = [
        (
            _shortened(report["path"]),
            report["words"],
            report["reading_ease"],
            ", ".join(report["key_terms"][:SHOWN_TERMS]),
        )
        for report in longest[:SHOWN_DOCUMENTS]
    ]
    _show_table(_heading(1, "The result"), ("longest documents", "words", "ease", "key terms"), rows)
    _say(
        screen,
        f"The analysts measured {len(longest)} documents in {job.seconds:.0f} s. Ease is the Flesch reading ease: "
        "60 to 70 is plain English, and more is easier.",
    )
    for report in job.documents:
        if report["near_duplicates"]:
            _say(screen, f"{report['path']} is nearly the same as {', '.join(report['near_duplicates'])}.")
    for path, reason in job.skipped.items():
        _say(screen, f"{path} was skipped: {reason}")


def _show_messages(job: JobResult, screen: Console) -> None:
    statuses = [status for status in MessageStatus if any(status in row for row in job.messages.values())]
    rows = [
        (agent, *(counts.get(status, 0) for status in statuses), sum(counts.values()))
        for agent, counts in job.messages.items()
    ]
    columns = ("messages to", *(str(status) for status in statuses), "all")
    _show_table(_heading(2, "Every message has a status"), columns, rows)
    waiting = job.statistics.delivery
    _say(
        screen,
        f"The ledger recorded {job.statistics.total} messages and events. Half of the messages waited in a queue "
        f"for less than {waiting.p50 or 0:.2f} s.",
    )


def _show_overtaking(overtaking: Overtaking, screen: Console) -> None:
    receipt = overtaking.receipt
    rows = [
        ("sent", _time(receipt.sent_at), f"number {overtaking.sent_as} of {overtaking.of}"),
        ("begun", _time(receipt.delivered_at), f"number {overtaking.begun_as} of {overtaking.of}"),
        ("handled", _time(receipt.finished_at), ""),
    ]
    columns = (overtaking.path, "time (UTC)", f"among {overtaking.agent}'s documents")
    _show_table(_heading(3, "An URGENT message overtakes LOW ones"), columns, rows)
    _say(
        screen,
        f"URGENT {overtaking.path} overtook {overtaking.overtaken} LOW documents that were sent before it.",
    )


def _show_thread(job: JobResult, screen: Console) -> None:
    rows = [
        (
            _time(receipt.sent_at),
            receipt.from_agent,
            receipt.to_agent or "(subscribers)",
            receipt.handler,
            receipt.status,
        )
        for receipt in job.thread
    ]
    columns = ("sent (UTC)", "from", "to", "type or topic", "status")
    _show_table(_heading(4, "The ledger knows what a message led to"), columns, rows)
    _say(
        screen,
        "The first row is the URGENT message. Its handler sent a report and an acknowledgement, and "
        "published an event. `waooaw conversation ID` shows this for every message.",
    )


def _show_topics(job: JobResult, screen: Console) -> None:
    rows = [
        (topic.topic, topic.published, each.subscriber, each.messages, each.handled)
        for topic in job.topics
        for each in topic.subscribers
    ]
    columns = ("topic", "published", "subscriber", "received", "handled")
    _show_table(_heading(5, "Events go to the subscribers they match"), columns, rows)
    _say(screen, "dashboard.note_long subscribes only to documents of 1000 words or more.")


def _show_survey(job: JobResult, screen: Console) -> None:
    rows = [
        (
            agent,
            f"{answer['seconds']:.2f} s",
            answer["error"] or ", ".join(f"{name}: {value}" for name, value in answer["status"].items()),
        )
        for agent, answer in job.survey.items()
    ]
    _show_table(_heading(6, "Agents answer requests"), ("agent", "after", "answer"), rows)
    _say(screen, "The dashboard asked all agents at once while they were measuring, at priority HIGH.")


def _show_rate_limit(reached: RateLimitReached, screen: Console) -> None:
    rows = [
        ("quota", reached.quota),
        ("answered requests", str(reached.answered)),
        ("refused requests", str(reached.refused)),
        ("next request allowed", f"in {reached.retry_after:.1f} s"),
    ]
    _show_table(_heading(7, "Failure on purpose: a rate limit"), (f"sender: {reached.sender}", ""), rows)
    _say(
        screen,
        "The quota was set while everything was running. A refused sender gets an error that says when to retry.",
    )


def _show_invalid_document(rejected: DocumentRejected, screen: Console) -> None:
    rows = [
        ("message", rejected.message_id),
        ("error of the handler", rejected.reason),
        ("dead letter", rejected.dead_letter_id),
    ]
    title = _heading(8, "Failure on purpose: an invalid document")
    _show_table(title, (f"sent to {rejected.agent}", ""), rows)
    _say(
        screen,
        "The document had no text. A message that its handler rejects becomes a dead letter: "
        "`waooaw dead list` shows it, `dead retry` sends it again, `dead discard` removes it.",
    )


def _show_killed_workflow(killed: WorkflowKilled, screen: Console) -> None:
    rows = [
        ("workflow", killed.workflow_id),
        ("steps recorded before the kill", killed.recorded),
        ("documents, requests to analysts", f"{killed.documents}, {killed.asked}"),
        ("published", f"{killed.result['title']}, approved by {killed.result['approved_by']}"),
        ("not approved", killed.refused),
        ("reports that stay filed", ", ".join(killed.filed)),
    ]
    title = _heading(9, "Failure on purpose: a workflow is killed")
    _show_table(title, ("run by the orchestrator", ""), rows)
    _say(
        screen,
        "The demo killed the process (SIGKILL) that ran two workflows. A new one went on with what was recorded, "
        "and asked for no document twice. A person approved one report and refused the other, which was undone. "
        "`waooaw workflow show ID` shows the steps.",
    )


def _show_hanging_agent(hung: AgentHung, screen: Console) -> None:
    rows = [
        ("requests that timed out", hung.timed_out),
        ("next request refused after", f"{hung.refused_after * 1000:.0f} ms"),
        ("its error said to try again", f"in {hung.retry_after:.1f} s"),
        ("first answer after its return", f"{hung.answered_after:.1f} s"),
    ]
    title = _heading(10, "Failure on purpose: an agent hangs")
    _show_table(title, (f"requests to {hung.agent}", ""), rows)
    _say(
        screen,
        "The demo stopped the agent's process (SIGSTOP). After some timeouts its circuit breaker opened, for all "
        "processes: `waooaw breakers` shows it. When the agent went on, one request as a probe closed it.",
    )


def _show_lost_messages(recovered: MessagesRecovered, screen: Console) -> None:
    rows = [
        ("sent", recovered.sent),
        ("published again", recovered.republished),
        ("handled", recovered.handled),
        ("handled twice", recovered.begun_twice),
    ]
    title = _heading(11, "Failure on purpose: the broker is emptied")
    _show_table(title, (f"messages to {recovered.agent}", "count"), rows)
    _say(
        screen,
        "The demo deleted everything in the broker while the messages waited. The ledger still had them. All but "
        "those that the worker already had were published again, and all were handled "
        f"{recovered.seconds:.1f} s after the loss.",
    )


def _show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    show_table(title, columns, rows, WIDTH)


def _heading(number: int, text: str) -> str:
    return f"{number}. {text}"


def _say(screen: Console, sentence: str) -> None:
    screen.print(Text(escaped(sentence)))


def _time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%H:%M:%S.%f}"[:-3]


def _shortened(path: str) -> str:
    return path if len(path) <= PATH_WIDTH else f"…{path[1 - PATH_WIDTH :]}"
