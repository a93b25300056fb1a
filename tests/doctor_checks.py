"""Runs the checks of `waooaw doctor` for tests."""

from __future__ import annotations

from contextlib import closing

from waooaw_celery import create_app
from waooaw_celery.maintenance.diagnostics.examination import examine
from waooaw_celery.maintenance.diagnostics.finding import Check, Finding, State


def look(url: str, *checks: Check, **config: object) -> list[Finding]:
    """Run checks with an application on a Redis."""
    with closing(create_app(broker_url=url, result_backend=url, **config)) as app:
        return examine(app, checks or None)


def worst(findings: list[Finding], state: State = State.FAIL) -> str:
    """Return the sentences of the findings in a state."""
    return "\n".join(each.sentence for each in findings if each.state is state)
