"""The demo's agent that hangs: a circuit breaker refuses requests to it, until it answers again."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.app.app import AgentApp, create_app
from waooaw_celery.cli.group import OPERATOR
from waooaw_celery.demo.processes import Stack
from waooaw_celery.errors import CircuitOpen, RequestTimeout

#: The agent that hangs, and the timeout of a request to it.
AGENT, TIMEOUT = "dashboard", 0.3
#: Failures that open the breaker, and seconds until a probe: fewer than usual, so that this takes seconds.
FAILURES, OPEN_SECONDS = 3, 1.0
#: Seconds after which the scenario counts as stuck.
STUCK_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHung:
    """What happened to requests to an agent that hung.

    Attributes:
        agent: the agent.
        timed_out: how many requests timed out before the breaker opened.
        refused_after: seconds after which the next request was refused.
        retry_after: seconds after which that error said to try again.
        answered_after: seconds from the agent's return to the first answer.
    """

    agent: str
    timed_out: int
    refused_after: float
    retry_after: float
    answered_after: float


def hang_agent(stack: Stack) -> AgentHung:
    """Stop an agent's worker as a hanging computer does, request it until its breaker opens, and let it go on."""
    settings = {"waooaw_breaker_failures": FAILURES, "waooaw_breaker_open_seconds": OPEN_SECONDS}
    worker = stack.processes[AGENT]
    with _unlogged(), closing(_application(stack, settings)) as app:
        requests = RequestResponseHandler(app)
        worker.send_signal(signal.SIGSTOP)
        try:
            timed_out = 0
            while True:
                began = time.monotonic()
                try:
                    requests.request(AGENT, "get_status", timeout=TIMEOUT)
                except RequestTimeout:
                    timed_out += 1
                except CircuitOpen as error:
                    refused_after, retry_after = time.monotonic() - began, error.retry_after
                    break
        finally:
            worker.send_signal(signal.SIGCONT)
        back_at = time.monotonic()
        stack.wait_until(lambda: _is_answered(requests), f"an answer of {AGENT}", STUCK_SECONDS)
        return AgentHung(
            agent=AGENT,
            timed_out=timed_out,
            refused_after=refused_after,
            retry_after=retry_after,
            answered_after=time.monotonic() - back_at,
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    """Print no warnings of this process meanwhile: the story tells that the breaker opens and closes."""
    logger, handler = logging.getLogger("waooaw_celery"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _application(stack: Stack, settings: Mapping[str, object]) -> AgentApp:
    return create_app(
        "visitor",
        broker_url=stack.url,
        waooaw_sender=OPERATOR,
        waooaw_database_url=stack.database_url,
        waooaw_spool_folder=str(stack.folder / "spool"),
        **settings,
    )


def _is_answered(requests: RequestResponseHandler) -> bool:
    """Return whether the agent answers a request: the first one is the probe of its breaker."""
    try:
        requests.request(AGENT, "get_status", timeout=5)
    except (CircuitOpen, RequestTimeout):
        return False
    return True
