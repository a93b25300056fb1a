"""`demo`: agents of a real job, from nothing to the results in one command."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from waooaw_celery.cli.output import console, json_option, print_json, show_table
from waooaw_celery.demo.failures import InvalidDocument, Limited, LostAndRecovered
from waooaw_celery.demo.processes import AGENTS, ROOT, Stack, running_stack
from waooaw_celery.demo.scenario import JobResult, Overtaking, run_job
from waooaw_celery.messages.enums import MessageStatus

#: Rows of the table of documents; the JSON has all.
SHOWN = 12


@click.command()
@click.option(
    "--input",
    "folder",
    type=click.Path(exists=True, path_type=Path, resolve_path=True),
    help="File or folder with .txt, .md, .rst and .py documents.  [default: this project's own]",
)
@json_option
def demo(folder: Path | None, as_json: bool) -> None:
    """Let agents measure the documents of a folder, and show how they talked.

    Starts a Valkey server, a Celery worker for each agent, and beat; leaves nothing behind.
    """
    screen = Console(stderr=True) if as_json else console()
    began = time.monotonic()
    screen.print(f"Starting a Valkey server, {len(AGENTS)} agents, the system's worker and beat …")
    with running_stack() as stack:
        screen.print(f"Ready after {time.monotonic() - began:.1f} s.")
        result = _run(stack, [folder] if folder else _own_documents(), screen)
        screen.print("Stopping …")
    if as_json:
        print_json(result)
        return
    _show(result, screen)
    screen.print(f"\n{time.monotonic() - began:.1f} s in all, {result.seconds:.1f} s of them for the job.")
    screen.print("To keep the agents running and talk to them yourself: waooaw up")


def _own_documents() -> list[Path]:
    """Return the checkout, or what of it is installed."""
    checkout = (ROOT / "setup.cfg").exists()
    return [ROOT] if checkout else [ROOT / "waooaw_celery", ROOT / "workers"]


def _run(stack: Stack, paths: list[Path], screen: Console) -> JobResult:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("Measuring documents", total=None)
        return run_job(stack, paths, lambda done, total: progress.update(task, completed=done, total=total))


def _show(result: JobResult, screen: Console) -> None:
    _show_documents(result, screen)
    _show_messages(result, screen)
    _show_overtaking(result.overtaking, screen)
    _show_thread(result, screen)
    _show_topics(result, screen)
    _show_survey(result, screen)
    _show_limited(result.limited, screen)
    _show_torn(result.torn, screen)
    _show_forgotten(result.forgotten, screen)


def _show_documents(result: JobResult, screen: Console) -> None:
    longest = sorted(result.documents, key=lambda report: -report["words"])
    rows = [
        (
            report["path"],
            report["words"],
            report["sentences"],
            report["reading_ease"],
            ", ".join(report["key_terms"]),
        )
        for report in longest[:SHOWN]
    ]
    columns = ("document", "words", "sentences", "ease", "key terms")
    show_table(screen, f"The longest of {len(longest)} documents", columns, rows)
    for report in result.documents:
        if report["near_duplicates"]:
            screen.print(
                f"{report['path']} is nearly the same as {', '.join(report['near_duplicates'])}", markup=False
            )
    for path, why in result.skipped.items():
        screen.print(f"{path} was left out: {why}", markup=False)


def _show_messages(result: JobResult, screen: Console) -> None:
    statuses = [status for status in MessageStatus if any(status in row for row in result.messages.values())]
    rows = [
        (agent, *(counts.get(status, 0) for status in statuses), sum(counts.values()))
        for agent, counts in result.messages.items()
    ]
    show_table(screen, "Messages by agent and status", ("to", *(str(s) for s in statuses), "all"), rows)


def _show_overtaking(overtaking: Overtaking, screen: Console) -> None:
    receipt = overtaking.receipt
    rows = [
        ("sent", f"{receipt.sent_at:%H:%M:%S.%f}"[:-3], f"{overtaking.sent_as}. of {overtaking.of}"),
        ("begun", f"{receipt.delivered_at:%H:%M:%S.%f}"[:-3], f"{overtaking.begun_as}. of {overtaking.of}"),
        ("handled", f"{receipt.finished_at:%H:%M:%S.%f}"[:-3], ""),
    ]
    title = f"URGENT {overtaking.path} overtook {overtaking.overtaken} LOW documents of {overtaking.agent}"
    show_table(screen, title, ("", "at (UTC)", "place in the queue"), rows)


def _show_thread(result: JobResult, screen: Console) -> None:
    rows = [
        (
            f"{receipt.sent_at:%H:%M:%S.%f}"[:-3],
            receipt.from_agent,
            receipt.to_agent,
            receipt.handler,
            receipt.status,
        )
        for receipt in result.thread
    ]
    columns = ("sent (UTC)", "from", "to", "handler", "status")
    show_table(screen, "What the ledger tells of that message and what came of it", columns, rows)
    delivery = result.statistics.delivery
    screen.print(
        f"The ledger has {result.statistics.total} messages; half of them waited less than "
        f"{delivery.p50 or 0:.2f} s, 99 % less than {delivery.p99 or 0:.2f} s."
    )


def _show_topics(result: JobResult, screen: Console) -> None:
    rows = [
        (topic.topic, topic.published, each.subscriber, each.messages, each.handled)
        for topic in result.topics
        for each in topic.subscribers
    ]
    columns = ("topic", "published", "subscriber", "told", "handled")
    show_table(screen, "Events, each told to whoever wants it, in a message of its own", columns, rows)


def _show_survey(result: JobResult, screen: Console) -> None:
    rows = [
        (agent, answer["error"] or ", ".join(f"{k} {v}" for k, v in answer["status"].items()), answer["seconds"])
        for agent, answer in result.survey.items()
    ]
    show_table(
        screen, "What the agents told the dashboard while they worked", ("agent", "status", "seconds"), rows
    )


def _show_limited(limited: Limited, screen: Console) -> None:
    rows = [
        ("its quota, set while everything ran", limited.quota),
        ("requests answered", str(limited.answered)),
        ("requests refused, as the ledger has it", str(limited.refused)),
        ("the next one passes in", f"{limited.retry_after:.1f} s"),
    ]
    show_table(screen, f"A {limited.agent} that asked too much", ("", ""), rows)


def _show_torn(torn: InvalidDocument, screen: Console) -> None:
    rows = [
        ("its handler gave it up", torn.reason),
        ("kept as the dead letter", torn.letter),
        ("to be sent again, or not", f"waooaw dead retry {torn.letter} (or discard)"),
    ]
    show_table(screen, f"A document without a text, sent to {torn.agent}", ("", ""), rows)


def _show_forgotten(forgotten: LostAndRecovered, screen: Console) -> None:
    rows = [
        (f"sent to {forgotten.agent}, just before", forgotten.sent),
        ("gone from the broker, published again", forgotten.published_again),
        ("handled", forgotten.handled),
        ("handled twice", forgotten.twice),
        ("seconds until then", f"{forgotten.seconds:.1f}"),
    ]
    show_table(screen, "The broker was emptied while messages waited; the ledger knew them", ("", ""), rows)
