"""How long the ledger takes to answer questions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy.engine import make_url

from benchmarks.ledger import WARM_UP, query_cases
from benchmarks.ledger_purge import milliseconds
from benchmarks.suite.groups.growth import new_ledger
from benchmarks.suite.row import Context, Group, Row, Sample, Subject
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy

#: The questions that are asked, and what the 95th percentile of their times should be at most, in milliseconds.
LIMITS = {
    "by correlation id": 10.0,
    "to an agent, last 50": 10.0,
    "page, deep": 10.0,
    "status failed": 50.0,
    "agent and status handled": 50.0,
    "text, nowhere": 50.0,
    "agent, type and day": 50.0,
    "statistics of one day": 150.0,
}
BASE = "empty query"
#: How often each question is asked in one sample, with other arguments each time.
RUNS = 20


def questions(context: Context) -> Group:
    """Return the group. The ledger has ``context.growth`` messages."""
    messages = context.growth
    database = Database(make_url(new_ledger(context, "questions", messages)))
    context.stack.callback(database.close)
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    context.stack.callback(ledger.close)
    cases = query_cases(MessageAuditTrail(ledger), ledger, messages, datetime.now(UTC))
    subjects = {case.name: _p95(case.run) for case in cases if case.name in {BASE, *LIMITS}}
    rows = [Row(f"{name}, p95", name, BASE, unit="ms", limit=limit) for name, limit in LIMITS.items()]
    return Group(f"Questions to a ledger of {messages:,} messages", subjects, rows)


def _p95(ask: Callable[[], object]) -> Subject:
    for _ in range(WARM_UP):
        ask()
    return lambda: Sample(statistics.quantiles([milliseconds(ask) for _ in range(RUNS)], n=20)[-1])
