"""Runs the checks of `waooaw doctor`: all at the same time, each with a deadline.

To add a check, write a function from an application to findings, and add it to ``CHECKS``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import WaooawError
from waooaw_celery.maintenance.diagnostics.broker import broker, publishing
from waooaw_celery.maintenance.diagnostics.clocks import (
    clock_of_the_broker,
    clock_of_this_computer,
    clocks_of_the_workers,
)
from waooaw_celery.maintenance.diagnostics.finding import Check, Finding, fail
from waooaw_celery.maintenance.diagnostics.housekeeping import housekeeping
from waooaw_celery.maintenance.diagnostics.ledger import (
    ledger_database,
    ledger_permissions,
    ledger_schema,
    spool,
)
from waooaw_celery.maintenance.diagnostics.permissions import redis_permissions
from waooaw_celery.maintenance.diagnostics.redis_servers import redis_servers
from waooaw_celery.maintenance.diagnostics.settings import handlers_of_this_application, settings, versions
from waooaw_celery.maintenance.diagnostics.workers import (
    handlers_of_the_workers,
    ledgers_of_the_workers,
    workers_for_what_waits,
)
from waooaw_celery.store.redis_refusals import explained, refusal_in

#: Seconds after which a check that has not ended fails. The deadlines of the connections are shorter.
CHECK_SECONDS = 20.0

#: The checks of ``waooaw doctor``, in the order in which they are shown.
CHECKS: list[Check] = [
    versions,
    settings,
    handlers_of_this_application,
    broker,
    publishing,
    redis_servers,
    redis_permissions,
    ledger_database,
    ledger_schema,
    ledger_permissions,
    spool,
    clock_of_this_computer,
    clock_of_the_broker,
    clocks_of_the_workers,
    handlers_of_the_workers,
    ledgers_of_the_workers,
    workers_for_what_waits,
    housekeeping,
]


def examine(app: AgentApp, checks: Iterable[Check] | None = None, seconds: float = CHECK_SECONDS) -> list[Finding]:
    """Run checks at the same time, and return their findings in order.

    A check that raises becomes a FAIL with the error's message, and so does one that does not end in time: it is
    left behind in its thread. If the settings are wrong, nothing else is checked.

    Args:
        app: the application whose broker, store and ledger are checked.
        checks: the checks to run; None: all.
        seconds: time limit of all checks together.

    Example:
        >>> [finding.name for finding in examine(app) if finding.state is State.FAIL]
        ['clock of planner@host-2']
    """
    wrong = _Running(settings, app).found(seconds)
    if any(finding.state == "fail" for finding in wrong):
        return wrong
    running = [_Running(check, app) for check in (CHECKS if checks is None else checks)]
    ends_at = time.monotonic() + seconds
    return [finding for each in running for finding in each.found(ends_at - time.monotonic())]


class _Running:
    """A check that runs in a thread of its own.

    Args:
        check: the check.
        app: the application.
    """

    def __init__(self, check: Check, app: AgentApp) -> None:
        self._check, self._app = check, app
        self._name = check.__name__.replace("_", " ")
        self._findings: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=f"doctor-{check.__name__}", daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def found(self, seconds: float) -> list[Finding]:
        """Wait for the check, and return its findings.

        Args:
            seconds: longest time to wait.
        """
        self._thread.join(max(seconds, 0.0))
        if not self._thread.is_alive():
            return self._findings
        passed = time.monotonic() - self._began
        sentence = f"it did not end within {passed:.0f} s: a server answers too slowly, or not at all"
        return [*self._findings, fail(self._name, f"{sentence}. See the other findings, and check the network")]

    def _run(self) -> None:
        try:
            for finding in self._check(self._app):
                self._findings.append(finding)
        except WaooawError as error:
            self._findings.append(fail(self._name, str(error)))
        except (KombuError, RedisError, AMQPError, OSError) as error:
            text = explained(error).rstrip(".") or type(error).__name__
            if refusal_in(error) is None:
                text = f"the server does not answer: {text}. Check that it runs"
            self._findings.append(fail(self._name, text))
        except Exception as error:  # noqa: BLE001 - the other checks still run, and this one is shown as failed
            self._findings.append(fail(self._name, f"the check itself failed: {type(error).__name__}: {error}"))
