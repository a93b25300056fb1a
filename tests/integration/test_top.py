"""`waooaw top` shows all agents, those that need attention first, and gives the terminal back as it was."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from faults.servers import Valkey, lone_valkey
from process_pool import waooaw
from support import until

from waooaw_celery import AgentApp, Message, MessageBus, create_app
from waooaw_celery.discovery.health.state import DISCOVERY_FACT, Health, WorkerFacts
from waooaw_celery.maintenance.top.frame import Attention
from waooaw_celery.maintenance.top.reader import TopReader
from waooaw_celery.testing.embedded import end


@pytest.fixture(scope="module")
def redis() -> Iterator[Valkey]:
    """A Valkey of these tests."""
    with lone_valkey(durable=False) as server:
        yield server


@pytest.fixture
def app(redis: Valkey) -> Iterator[AgentApp]:
    """An application on an empty server."""
    redis.client.flushall()
    with closing(create_app(broker_url=redis.url, result_backend=redis.url, waooaw_sender="tests")) as app:
        yield app


def declare(app: AgentApp, name: str, lifetime: float = 60, pool: int = 2, **facts: Any) -> None:
    """Let an agent have a living worker that reports facts."""
    known: dict[str, Any] = {"started_at": datetime.now(UTC), "ttl": lifetime, "heartbeat": 20.0}
    report = {
        DISCOVERY_FACT: WorkerFacts(**(known | {"health": Health.HEALTHY} | facts)).to_dict(),
        "pool": {"size": pool},
    }
    app.registry.declare(name, ["command"], f"{name}@here", lifetime, report=report)


def send(app: AgentApp, name: str, count: int = 1, **fields: Any) -> None:
    """Send messages to an agent."""
    MessageBus(app).send_many([Message(from_agent="tests", to_agent=name, **fields) for _ in range(count)])


def test_what_needs_attention_comes_first(app: AgentApp) -> None:
    """Each reason has its place, and each number comes from its source."""
    declare(app, "quiet", handled=7)
    declare(app, "failing", handled=5, failed=2)
    declare(app, "ill", health=Health.UNHEALTHY, reasons=("the disk is full",))
    declare(app, "weak", health=Health.DEGRADED)
    declare(app, "refused")
    declare(app, "busy", running=2)
    declare(app, "gone", lifetime=0.2)
    for name in ("gone", "busy", "quiet"):
        send(app, name, 3)
    send(app, "gone", 2, priority="URGENT")
    app.breakers.open_by_hand("refused", by="tests")
    until(lambda: not app.registry.get("gone").workers, "the end of its lifetime")
    with closing(TopReader(app)) as reader:
        frame = reader.frame(10)
    assert [source.error for source in frame.sources] == [None, None, None]
    assert [(line.name, line.attention) for line in frame.agents] == [
        ("gone", Attention.NO_WORKER),
        ("ill", Attention.UNHEALTHY),
        ("refused", Attention.BREAKER),
        ("weak", Attention.DEGRADED),
        ("failing", Attention.FAILING),
        ("busy", Attention.FULL),
        ("quiet", Attention.NONE),
    ]
    found = {line.name: line for line in frame.agents}
    assert (found["gone"].waiting, found["gone"].workers) == (5, 0)
    assert found["gone"].by_priority == {"URGENT": 2, "HIGH": 0, "NORMAL": 3, "LOW": 0}
    assert (found["busy"].running, found["busy"].places) == (2, 2)
    assert (found["failing"].handled, found["failing"].failed) == (5, 2)
    assert any("the disk is full" in reason for reason in found["ill"].reasons)
    assert found["quiet"].breaker == "closed"


def test_the_age_of_the_oldest_message_is_shown(app: AgentApp) -> None:
    """It is that of the message that is next; without one, it is the longest wait of the last minute."""
    declare(app, "slow")
    declare(app, "done", waited=12.5)
    send(app, "slow", payload={"text": '"sent_at": "2001-01-01T00:00:00+00:00"'})
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 1.5, "some age")
    send(app, "slow", priority="URGENT")
    with closing(TopReader(app)) as reader:
        found = {line.name: line.oldest_seconds for line in reader.frame(10).agents}
    assert 1.4 < (found["slow"] or 0) < 60
    assert found["done"] == 12.5


def test_a_source_that_is_away_is_shown_and_the_rest_goes_on(app: AgentApp) -> None:
    """While the broker is frozen, the agents are current, and a frame takes no longer than it may."""
    with lone_valkey(durable=False) as broker:
        config = {"broker_url": broker.url, "result_backend": app.conf.result_backend, "waooaw_sender": "tests"}
        with closing(create_app(**config)) as other, closing(TopReader(other)) as reader:
            declare(app, "seen")
            assert [source.error for source in reader.frame(10).sources] == [None, None, None]
            broker.freeze()
            declare(app, "seen", handled=9)
            for _ in range(4):
                began = time.monotonic()
                frame = reader.frame(0.5)
                assert time.monotonic() - began < 1.0
            states = {source.name: source for source in frame.sources}
            assert states["queues"].error is not None
            assert (states["queues"].seconds or 0) > 0
            assert states["agents"].error is None
            assert [line.handled for line in frame.agents] == [9]
            broker.thaw()
            until(lambda: reader.frame(5).sources[1].error is None, "the broker")


def test_one_frame_without_a_terminal(app: AgentApp, redis: Valkey) -> None:
    """It is a table, or JSON; a store that is away is a warning."""
    declare(app, "writer", handled=3)
    env = {"CELERY_BROKER_URL": redis.url, "CELERY_RESULT_BACKEND": redis.url}
    text = waooaw("top", "--wide", env=env)
    assert text.returncode == 0, text.stderr
    assert re.search(r"^writer +online +healthy +1 +0/2 +0 +3", text.stdout, re.MULTILINE), text.stdout
    found = json.loads(waooaw("top", "--json", env=env).stdout)
    assert [agent["name"] for agent in found["agents"]] == ["writer"]
    assert {source["name"] for source in found["sources"]} == {"agents", "queues", "breakers"}
    away = waooaw("top", "--once", env={"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"})
    assert away.returncode == 0
    assert "Warning: agents: " in away.stderr
    assert "Traceback" not in away.stderr


@contextmanager
def on_a_terminal(url: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `waooaw top` on a terminal of 120 columns; yields the process and the terminal's other end."""
    here, there = pty.openpty()
    termios.tcsetwinsize(here, (30, 120))
    env = os.environ | {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url, "TERM": "xterm-256color"}
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "waooaw_celery", "top", "--interval", "0.5", *options]
    process = subprocess.Popen(
        command,
        stdin=there,
        stdout=there,
        stderr=there,
        env=env,
        start_new_session=True,
        # A program that a shell has started in the background ignores it, and so do those that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process, here
    finally:
        end(process)
        os.close(here)
        os.close(there)


def shown(terminal: int, what: str, seconds: float = 30.0) -> str:
    """Return what the terminal shows until it has a text."""
    found, ends_at = b"", time.monotonic() + seconds
    while what not in found.decode(errors="replace"):
        assert time.monotonic() < ends_at, found.decode(errors="replace")
        if select.select([terminal], [], [], 0.1)[0]:
            found += os.read(terminal, 65536)
    return found.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["q", "SIGINT", "SIGTERM"])
def test_a_live_view_ends_with_the_terminal_as_it_was(app: AgentApp, redis: Valkey, by: str) -> None:
    """It shows what changes, and ends with the exit code 0 by q, by Ctrl-C and by SIGTERM."""
    declare(app, "writer", handled=3)
    with on_a_terminal(redis.url) as (process, terminal):
        before = termios.tcgetattr(terminal)
        text = shown(terminal, "writer")
        assert "\x1b[?1049h" in text, "the alternate screen"
        name = f"late-{uuid4().hex[:4]}"
        declare(app, name)
        shown(terminal, name)
        assert termios.tcgetattr(terminal) != before
        if by == "q":
            os.write(terminal, b"q")
        else:
            process.send_signal(getattr(signal, by))
        assert "\x1b[?1049l" in shown(terminal, "\x1b[?1049l")
        assert process.wait(20) == 0
        assert termios.tcgetattr(terminal) == before


@pytest.mark.slow
def test_two_hundred_agents_fit_into_the_interval(app: AgentApp) -> None:
    """A frame of 200 agents, of which half have waiting messages, takes much less than two seconds."""
    for number in range(200):
        declare(app, f"agent-{number}", handled=number)
    for number in range(0, 200, 2):
        send(app, f"agent-{number}", 2)
    with closing(TopReader(app)) as reader:
        assert len(reader.frame(10).agents) == 200
        seconds = []
        for _ in range(5):
            began = time.monotonic()
            frame = reader.frame(10)
            seconds.append(time.monotonic() - began)
            assert [source.error for source in frame.sources] == [None, None, None]
    assert sorted(seconds)[2] < 1.5
