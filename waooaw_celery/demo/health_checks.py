"""The health of the demo's agents, as a supervisor or a load balancer asks for it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from waooaw_celery.demo.processes import AGENTS, Stack

#: Seconds within which all agents must be ready after the failures, and one must answer.
READY_SECONDS, ANSWER_SECONDS = 60.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthChecked:
    """The answer of a worker's `/health/ready`.

    Attributes:
        agent: its agent.
        url: what was asked.
        status: the HTTP status: 200, or 503.
        problems: what keeps it from its work, by name.
    """

    agent: str
    url: str
    status: int
    problems: dict[str, str]


def check_health(stack: Stack) -> Sequence[HealthChecked]:
    """Ask each agent whether it is ready, until all are, and return the last answers.

    Raises:
        WaooawError: one was not ready within a minute.
    """
    answers: list[HealthChecked] = []

    def all_ready() -> bool:
        answers[:] = [_ask(stack, name) for name, _, _ in AGENTS]
        return all(answer.status == 200 for answer in answers)

    stack.wait_until(all_ready, "becoming ready again", READY_SECONDS)
    return answers


def _ask(stack: Stack, agent: str) -> HealthChecked:
    reports = stack.app.registry.get(agent).reports.values()
    port = next((report["health_port"] for report in reports if "health_port" in report), None)
    url = f"http://127.0.0.1:{port}/health/ready"
    if port is None:
        return HealthChecked(agent=agent, url=url, status=503, problems={"registered": "it has no heartbeat yet"})
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            return HealthChecked(agent=agent, url=url, status=answer.status, problems={})
    except urllib.error.HTTPError as error:
        with error:
            problems = json.loads(error.read())["problems"]
            return HealthChecked(agent=agent, url=url, status=error.code, problems=problems)
    except OSError as error:  # its worker was killed just now, and another one has another port
        return HealthChecked(agent=agent, url=url, status=503, problems={"port": str(error)})
