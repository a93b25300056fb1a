"""`demo`: run the agents, give them a job, cause failures, and print what happened as a story."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.output import json_option, print_json
from waooaw_celery.demo.console import check_console, message_url, start_console, thread_url
from waooaw_celery.demo.failures import Failures, run_failures
from waooaw_celery.demo.health_checks import check_health
from waooaw_celery.demo.outside_client import ask_from_outside
from waooaw_celery.demo.processes import AGENTS, ROOT, Stack, running_stack
from waooaw_celery.demo.program import program
from waooaw_celery.demo.scenario import JobResult, run_job
from waooaw_celery.demo.story import show_failures, show_health, show_introduction, show_job, show_outside


@click.command(cls=Command, examples=["waooaw demo", "waooaw demo --input docs"])
@click.option(
    "--input",
    "folder",
    type=click.Path(exists=True, path_type=Path, resolve_path=True),
    help="File or folder with .txt, .md, .rst and .py documents.  [default: this project's own]",
)
@click.option(
    "--console", "with_console", is_flag=True, help="Leave the web console open at the end, until Ctrl-C."
)
@json_option
def demo(folder: Path | None, with_console: bool, as_json: bool) -> None:
    """Let five agents measure the documents of a folder, and show how they communicated.

    Starts a Valkey server, a Celery worker for each agent, and beat. Stops all of them and leaves no files.
    """
    if with_console:
        check_console()
    screen = Console(stderr=True) if as_json else Console()
    began = time.monotonic()
    _silence_recovery()
    show_introduction(screen)
    screen.print(f"Starting a Valkey server, {len(AGENTS)} agents, the system's worker and beat …")
    with running_stack() as stack:
        screen.print(f"Ready after {time.monotonic() - began:.1f} s.")
        job = _run_job(stack, [folder] if folder else _own_documents(), screen)
        screen.print("Causing five failures on purpose …")
        failures = run_failures(stack)
        health = check_health(stack)
        outside = ask_from_outside(stack)
        if with_console:
            _leave_open(stack, job, failures, screen)
        screen.print("Stopping all processes …")
    if as_json:
        print_json({**asdict(job), "failures": failures, "health": health, "outside": outside})
        return
    show_job(job, screen)
    show_failures(failures, screen)
    show_health(health, screen)
    show_outside(outside, screen)
    screen.print(f"\nThe demo took {time.monotonic() - began:.0f} s. All processes are stopped.")
    screen.print("To keep the agents running and send messages to them yourself, type:\n")
    screen.print(f"  {program()} up", markup=False, highlight=False, soft_wrap=True)
    if not with_console:
        screen.print("\nTo look at what the agents did in a browser, type:\n")
        screen.print(f"  {program()} demo --console", markup=False, highlight=False, soft_wrap=True)


def _leave_open(stack: Stack, job: JobResult, failures: Failures, screen: Console) -> None:
    """Serve the console until Ctrl-C."""
    address = start_console(stack)
    overtaking = job.overtaking.receipt
    screen.print("\nThe console is open. Press Ctrl-C to end the demo.\n", highlight=False)
    for what, url in (
        ("All agents", address),
        ("What became of the urgent document, as a picture", thread_url(address, overtaking.message_id)),
        ("Why a document was rejected", message_url(address, failures.invalid_document.message_id)),
    ):
        screen.print(f"  {what}: {url}", markup=False, highlight=False, soft_wrap=True)
    try:
        while True:
            stack.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        screen.print()


def _silence_recovery() -> None:
    """Hide the warnings about lost messages: the demo loses messages on purpose, and shows what became of them."""
    logging.getLogger("waooaw_celery.maintenance.recovery").setLevel(logging.ERROR)


def _own_documents() -> list[Path]:
    """Return the folder of the checkout, or of the installed package."""
    is_checkout = (ROOT / "setup.cfg").exists()
    return [ROOT] if is_checkout else [ROOT / "waooaw_celery"]


def _run_job(stack: Stack, paths: list[Path], screen: Console) -> JobResult:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("Measuring documents", total=None)
        return run_job(stack, paths, lambda done, total: progress.update(task, completed=done, total=total))
