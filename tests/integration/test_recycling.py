"""A worker with ``--max-tasks-per-child 1`` replaces its process after each message at little cost."""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Broker

from waooaw_celery import AgentApp, RequestResponseHandler
from waooaw_celery.testing.embedded import end_all

OBJECTS = 1_000_000
MESSAGES = 12

pytestmark = pytest.mark.parametrize("broker", ["ledger"], indirect=True)


@pytest.fixture
def recycling(broker: Broker, app: AgentApp) -> Iterator[Callable[[int], tuple[str, int]]]:
    """A function that starts such a worker with objects in its memory, and returns its name and process id."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(objects: int) -> tuple[str, int]:
        name = broker.name()
        options = ["--max-tasks-per-child", "1"]
        env = {"OBJECTS": str(objects)}
        processes.append(broker.start(name, app, *options, module="recycling_probe", env=env))
        return name, processes[-1].pid

    yield start
    end_all(processes)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, without that of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def collection_seconds(objects: int) -> float:
    """Return the processor time that Python needs to search this many objects for garbage."""
    kept = [[number] for number in range(objects)]
    started = time.process_time()
    gc.collect()
    assert len(kept) == objects
    return time.process_time() - started


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it reads the processor time from Linux's /proc")
def test_a_process_is_replaced_without_a_search_of_the_workers_memory(
    recycling: Callable[[int], tuple[str, int]], app: AgentApp
) -> None:
    """Celery searches all of it for garbage before each fork, and handles nothing meanwhile."""
    requests = RequestResponseHandler(app)
    name, worker = recycling(OBJECTS)
    requests.request(name, "process", timeout=20)
    before = cpu_seconds(worker)
    pids = {requests.request(name, "process", timeout=20) for _ in range(MESSAGES)}
    assert len(pids) == MESSAGES
    assert cpu_seconds(worker) - before < MESSAGES * collection_seconds(OBJECTS) / 2


def test_each_message_gets_a_process_of_its_own(
    recycling: Callable[[int], tuple[str, int]], app: AgentApp
) -> None:
    """Plain and async handlers return their answers, and no process handles two messages."""
    requests = RequestResponseHandler(app)
    name, _ = recycling(0)
    pids = [requests.request(name, method, timeout=20) for method in ("process", "asynchronous") * 4]
    assert len(set(pids)) == 8
