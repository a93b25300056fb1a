"""The plain Celery worker of the benchmark, with the settings that an agent's worker has: nothing is lost."""

from __future__ import annotations

from celery import Celery

app = Celery("plain")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_default_queue="plain")


@app.task(name="plain.work", ignore_result=True)
def work(payload: object) -> None:
    """Do nothing."""


@app.task(name="plain.echo")
def echo(value: int) -> int:
    """Answer."""
    return value
