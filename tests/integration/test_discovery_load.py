"""Under load: dead and slow agents do not slow the others down, and an emptied store is soon whole again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest
from support import WAIT_SECONDS, Broker, pass_time, until
from test_discovery import BEAT, Agents

from waooaw_celery import AgentApp
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.agents import AgentStatus, Registry
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import end_all, valkey

pytestmark = pytest.mark.slow

AGENTS, CALLERS, PHASE_SECONDS = 10, 4, 12.0


class Answer(NamedTuple):
    """An answered request.

    Attributes:
        at: when it was sent, by the monotonic clock.
        agent: who was chosen.
        seconds: seconds until the answer.
        ok: whether it came.
    """

    at: float
    agent: str
    seconds: float
    ok: bool


def p99(answers: list[Answer]) -> float:
    """Return the 99th percentile of the times of answers."""
    times = sorted(each.seconds for each in answers)
    return times[int(len(times) * 0.99)]


@pytest.fixture
def agents(broker: Broker, app: AgentApp) -> Iterator[Agents]:
    """The agents of one test."""
    found = Agents(broker, app)
    yield found
    end_all(found.processes.values())


def test_two_dead_and_one_slow_agent_do_not_slow_the_others(
    agents: Agents, app: AgentApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request goes to a dead agent after its time to live, and few go to the slow one."""
    slow_file = tmp_path / "slow"
    names = [
        agents.start(seconds=0.05, slow_file=str(slow_file) if number == 0 else "/nowhere", options=["-P", "solo"])
        for number in range(AGENTS)
    ]
    slow, dead = names[0], names[1:3]
    requests, stopped = Requests(app), Event()

    def call() -> list[Answer]:
        found = []
        while not stopped.is_set():
            began = time.monotonic()
            response = requests.send_request(agents.address, params={"text": {"body": "a"}}, timeout=10)
            found.append(Answer(began, response.agent, time.monotonic() - began, response.ok))
        return found

    with ThreadPoolExecutor(CALLERS) as threads:
        calls = [threads.submit(call) for _ in range(CALLERS)]
        try:
            warm = time.monotonic() + 3
            pass_time(3 + PHASE_SECONDS)
            slow_file.touch()
            for name in dead:
                os.killpg(agents.processes[name].pid, signal.SIGKILL)
            killed = time.monotonic()
            for name in dead:
                agents.processes[name].wait(WAIT_SECONDS)
            pass_time(3 * BEAT + 1 + PHASE_SECONDS)
        finally:
            stopped.set()
        answers = [answer for each in calls for answer in each.result()]
    ended = killed + 3 * BEAT + 1.0
    assert [each for each in answers if each.agent in dead and each.at > ended] == []
    others = [each for each in answers if each.agent not in (slow, *dead)]
    assert all(each.ok for each in others)
    before = p99([each for each in others if warm < each.at < killed])
    after = p99([each for each in others if each.at > ended])
    late = [each for each in answers if each.at > ended]
    share = sum(each.agent == slow for each in late) / len(late)
    with capsys.disabled():
        print(f"\np99 before {before:.3f} s, after {after:.3f} s, of {len(others)}; {share:.1%} to the slow agent")
    # The ratio is a figure for people: on a busy computer it says how busy that was.
    assert share < 1 / (AGENTS - 2)


REGISTERED = 200
#: Each process registers one agent, and stays until its standard input is closed.
PROCESS = """
import os, sys
from waooaw_celery import create_app
from waooaw_celery.agents import Registry
app = create_app(broker_url=sys.argv[1], result_backend=sys.argv[1], waooaw_sender="tests")
sys.stdin.readline()
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    if os.fork() == 0:
        Registry(app).register(f"many-{number}", capabilities=["count"], handlers=["command"], ttl_seconds=3)
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
"""


def test_two_hundred_registrations_survive_a_restart_of_the_store() -> None:
    """An empty store is whole again within two heartbeats of its restart."""
    with valkey() as url:
        socket_path = Path(url.partition("://")[2])
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, url, str(first), str(first + 50)],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for first in range(0, REGISTERED, 50)
        ]
        try:
            for process in started:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            app = Broker(url, url, socket_path.parent).app()
            registry = Registry(app)

            def online() -> int:
                return sum(each.status is AgentStatus.ONLINE for each in registry.find(capability="count"))

            until(lambda: online() == REGISTERED, "all registrations", 60)
            client = connect(store_url(url))  # what a restart without a file leaves: no data, no connections
            client.flushall()
            client.client_kill_filter(_type="normal", skipme=True)
            client.close()
            began = time.monotonic()
            until(lambda: online() == REGISTERED, "the registry", 10)
            assert time.monotonic() - began < 2 * 1.0 + 1.0
            app.close()
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate(timeout=WAIT_SECONDS)
