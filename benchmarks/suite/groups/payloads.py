"""How long a payload of 10 MB takes from the call of ``send`` to its acknowledgement."""

from __future__ import annotations

from typing import Any

from benchmarks import large
from benchmarks.suite.row import Context, Group, Row, Sample
from benchmarks.suite.row import Subject as Measured
from waooaw_celery.testing.embedded import free_port, valkey

BASE = "Celery"
#: Whose times have a limit.
KINDS = ("no ledger", "batched, PostgreSQL", "strict, PostgreSQL")


def payloads(context: Context) -> Group:
    """Return the group. Each subject has a worker of the prefork pool, and a database of one server."""
    url = context.stack.enter_context(valkey(port=free_port()))
    settings = large.kinds({"postgres": context.database_url, "sqlite": ""}, context.folder)
    subjects: dict[str, Measured] = {}
    rows: list[Row] = []
    workers = {
        name: large.Subject(name, settings[name], url, "prefork", context.folder, context.stack)
        for name in (BASE, *KINDS)
    }
    for what, payload in large.payloads().items():
        for name, worker in workers.items():
            subjects[f"{what}: {name}"] = _measured(worker, payload)
        rows += [
            Row(f"{what}, {name}", f"{what}: {name}", f"{what}: {BASE}", unit="s", limit=large.GOAL_SECONDS)
            for name in KINDS
        ]
    return Group("Payloads of 10 MB, send to acknowledged", subjects, rows)


def _measured(worker: large.Subject, payload: Any) -> Measured:
    return lambda: Sample(worker.sample(payload).acknowledged)
