"""Two versions of one agent consume its queue, and only one of them has a handler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_pool import waooaw
from support import WAIT_SECONDS, Broker, queue_length, settled, until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageStatus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import UnknownMethod
from waooaw_celery.testing.embedded import end_all

CALLS = 50

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


class Deployment:
    """The workers of both versions of one agent.

    Attributes:
        name: name of the agent.
        processes: the workers by version.
    """

    def __init__(self, broker: Broker, app: AgentApp) -> None:
        self._broker, self._app = broker, app
        self.name = broker.name()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, version: str, *options: str, **settings: object) -> None:
        """Start a worker of a version."""
        self.processes[version] = self._broker.start(
            self.name,
            self._app,
            *options,
            node=f"{self.name}-{version}",
            module="version_probe",
            env={"VERSION": version},
            **settings,
        )

    def log(self, version: str) -> str:
        """Return the log of a version's worker."""
        return (self._broker.folder / f"{self.name}-{version}.log").read_text()

    def kill(self, version: str) -> None:
        """Kill a worker and its pool."""
        os.killpg(self.processes[version].pid, signal.SIGKILL)
        self.processes[version].wait(WAIT_SECONDS)


@pytest.fixture
def deployment(broker: Broker, app: AgentApp) -> Iterator[Deployment]:
    """An agent that has no workers yet."""
    found = Deployment(broker, app)
    yield found
    end_all(found.processes.values())


def dead_letters(app: AgentApp, name: str) -> list[str]:
    """Return the reasons of the dead letters of an agent."""
    return [letter.reason for letter in app.dead_letters.list(agent=name, limit=1000)]


POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.mark.parametrize("pool", POOLS)
def test_each_call_is_answered_by_a_version_that_has_the_method(
    deployment: Deployment, app: AgentApp, pool: str
) -> None:
    """The worker without the method hands the calls back, and none becomes a dead letter."""
    deployment.start("blue", "-P", pool)
    deployment.start("green", "-P", pool)
    name, requests = deployment.name, Requests(app)
    with ThreadPoolExecutor(16) as threads:
        both = [threads.submit(requests.request, name, "both", timeout=WAIT_SECONDS) for _ in range(CALLS)]
        added = [
            threads.submit(requests.request, name, "added", {"number": number}, timeout=WAIT_SECONDS)
            for number in range(CALLS)
        ]
    assert [each.result() for each in added] == list(range(CALLS))
    assert set(Counter(each.result() for each in both)) == {"blue", "green"}
    assert dead_letters(app, name) == []


def test_messages_events_and_tasks_are_handled_once_by_the_version_that_has_their_handler(
    deployment: Deployment, app: AgentApp, tmp_path: Path
) -> None:
    """So are messages of several priorities. No redelivery is counted, so their first attempt handles them."""
    deployment.start("blue")
    deployment.start("green")
    name, bus, file = deployment.name, MessageBus(app), tmp_path / "numbers"
    messages = [
        Message(
            from_agent="tests",
            to_agent=name,
            message_type=MessageType.COMMAND,
            payload={"file": str(file), "number": number},
        )
        for number in range(CALLS)
    ]
    ids = [each.message_id for each in bus.send_many(messages)]
    ids.append(app.send_task(f"{name}.command", ({"file": str(file), "number": CALLS},)).id)
    published = EventBus(app).publish("version.changed", {"to": "green"}, from_agent="tests")
    ids.append(published.receipts[f"{name}.changed"].message_id)
    assert len(ids) == CALLS + 2
    assert {settled(app, id_) for id_ in ids} == {MessageStatus.HANDLED}
    assert {bus.receipt(id_).attempts for id_ in ids} == {1}
    assert sorted(map(int, file.read_text().split())) == list(range(CALLS + 1))
    assert dead_letters(app, name) == []


@pytest.mark.slow
def test_a_call_is_answered_with_an_error_when_the_last_worker_with_its_method_is_dead(
    deployment: Deployment, app: AgentApp, tmp_path: Path
) -> None:
    """They are handed back while it counts as living, also those of a worker that is killed; none is lost."""
    deployment.start("blue", waooaw_heartbeat_seconds=0.5)
    deployment.start("green", waooaw_heartbeat_seconds=0.5)
    name, requests = deployment.name, Requests(app)
    with ThreadPoolExecutor(10) as threads:
        gate = {"file": str(tmp_path / "gate")}
        calls = [threads.submit(requests.send_request, name, "wait_for", gate, timeout=60) for _ in range(10)]
        until(lambda: [call for call in calls if call.running()] == calls, "the calls")
        until(lambda: queue_length(app, name) < 10, "the first call")
        deployment.kill("green")
        begun = time.monotonic()
        errors = [type(call.result().error) for call in calls]
    assert errors == [UnknownMethod] * 10
    assert time.monotonic() - begun < 30
    assert len(dead_letters(app, name)) == 10


@pytest.mark.slow
def test_a_busy_worker_gets_its_messages_later_while_the_other_handles_what_it_can(
    deployment: Deployment, app: AgentApp, tmp_path: Path
) -> None:
    """Messages that wait for the busy worker do not keep others from the worker that hands them back."""
    deployment.start("blue")
    deployment.start("green")
    name, requests, gate = deployment.name, Requests(app), tmp_path / "gate"
    with ThreadPoolExecutor(40) as threads:
        waiting = [
            threads.submit(requests.request, name, "wait_for", {"file": str(gate)}, timeout=60) for _ in range(20)
        ]
        until(lambda: all(call.running() for call in waiting), "the calls")
        answers = [requests.request(name, "both", timeout=WAIT_SECONDS) for _ in range(20)]
        assert "blue" in answers
        gate.touch()
        assert [call.result() for call in waiting] == ["green"] * 20
    assert dead_letters(app, name) == []


@pytest.mark.slow
def test_nothing_is_lost_when_the_worker_that_hands_back_is_killed(
    deployment: Deployment, app: AgentApp, tmp_path: Path
) -> None:
    """It holds messages that it is about to hand back; the broker redelivers them."""
    deployment.start("blue")
    deployment.start("green")
    name, requests, gate = deployment.name, Requests(app), tmp_path / "gate"
    with ThreadPoolExecutor(20) as threads:
        waiting = [
            threads.submit(requests.request, name, "wait_for", {"file": str(gate)}, timeout=60) for _ in range(20)
        ]
        until(lambda: all(call.running() for call in waiting), "the calls")
        until(lambda: "hands its messages back" in deployment.log("blue"), "a hand-back")
        deployment.kill("blue")
        gate.touch()
        assert [call.result() for call in waiting] == ["green"] * 20
    assert dead_letters(app, name) == []


@pytest.mark.slow
def test_the_commands_show_which_handlers_only_some_workers_have(
    deployment: Deployment, broker: Broker, app: AgentApp
) -> None:
    """``waooaw agents`` marks them, and ``waooaw doctor`` names them and their workers."""
    deployment.start("blue")
    deployment.start("green")
    env = {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": broker.redis_url}
    env |= {"WAOOAW_DATABASE_URL": broker.database_url} if broker.database_url else {}
    shown = waooaw("agents", env=env).stdout
    assert "added (1 of 2 workers)" in " ".join(shown.split())
    findings = {each["name"]: each for each in json.loads(waooaw("doctor", "--json", env=env).stdout)}
    finding = findings[f"handlers of {deployment.name}"]
    assert finding["state"] == "warn"
    assert f"only {deployment.name}-green@" in finding["sentence"]
