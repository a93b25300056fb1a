"""What commands that change something print with --json, as docs/json.md says, of real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from process_pool import waooaw

from waooaw_celery import AgentApp, create_app
from waooaw_celery.discovery.health.state import DISCOVERY_FACT, Health, WorkerFacts
from waooaw_celery.ledger.database.version import NEWEST
from waooaw_celery.store.subscriptions import Subscription


@pytest.fixture
def environment(redis_url: str, tmp_path: Path) -> dict[str, str]:
    """A broker, and a ledger without tables."""
    return {
        "CELERY_BROKER_URL": redis_url,
        "WAOOAW_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger'}",
        "WAOOAW_SPOOL_FOLDER": str(tmp_path),
    }


@pytest.fixture
def app(environment: dict[str, str]) -> Iterator[AgentApp]:
    """An application on them."""
    settings = {
        "broker_url": environment["CELERY_BROKER_URL"],
        "result_backend": environment["CELERY_BROKER_URL"],
        "waooaw_database_url": environment["WAOOAW_DATABASE_URL"],
        "waooaw_spool_folder": environment["WAOOAW_SPOOL_FOLDER"],
    }
    with closing(create_app("tests", **settings)) as app:
        yield app


def test_commands_print_what_they_have_changed(app: AgentApp, environment: dict[str, str]) -> None:
    """One object for each, on standard output, and nothing on standard error."""
    agent = f"changed-{uuid4().hex[:8]}"

    def printed(*arguments: str) -> Any:
        done = waooaw(*arguments, "--json", env=environment)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    assert printed("db", "upgrade") == {"version": NEWEST}
    assert printed("db", "status") == {"version": NEWEST}
    app.registry.declare(agent, ["command"], f"{agent}@here", 60)
    app.subscriptions.declare([Subscription(agent=agent, name="all", patterns=(f"{agent}.*",))])

    assert printed("limits", "set", agent, "5/minute") == {"agent": agent, "quota": "5/minute"}
    assert printed("limits", "reset", agent) == {"agent": agent}
    pause = printed("limits", "pause", agent, "--because", "it circles", "--by", "ada")
    assert pause == {"agent": agent, "by": "ada", "reason": "it circles"}
    assert printed("limits", "resume", agent) == {"agent": agent}

    opened = printed("breakers", "open", agent, "--for", "600", "--by", "ada")
    assert opened == {"agent": agent, "by": "ada", "reason": None, "seconds": 600.0}
    assert printed("breakers", "close", agent) == {"agent": agent}

    subscriber = f"{agent}.all"
    assert printed("events", "unsubscribe", subscriber) == {"subscriber": subscriber, "waiting": 0}
    assert printed("events", "resubscribe", subscriber) == {"subscriber": subscriber}

    hold = ("agent", agent)
    placed = printed("hold", "add", *hold, "--reason", "lawsuit")
    assert placed == {"kind": "agent", "value": agent, "reason": "lawsuit"}
    assert printed("hold", "release", *hold) == {"kind": "agent", "value": agent}

    assert printed("maintenance", agent) == {"agent": agent, "status": "maintenance"}
    assert printed("resume", agent)["agent"] == agent
    assert printed("traffic", f"{agent}=0.5") == {agent: 0.5}
    assert printed("drain", agent) == {"agent": agent, "workers": [f"{agent}@here"], "stopped": None}


def test_a_drain_that_takes_too_long_says_so(environment: dict[str, str]) -> None:
    """With --wait: if a worker still runs, ``stopped`` is false, and the exit code is 1."""
    agent = f"drained-{uuid4().hex[:8]}"
    del environment["WAOOAW_DATABASE_URL"]
    facts = WorkerFacts(started_at=datetime.now(UTC), ttl=60.0, heartbeat=20.0, health=Health.HEALTHY)
    with closing(create_app("tests", broker_url=environment["CELERY_BROKER_URL"])) as app:
        report = {DISCOVERY_FACT: facts.to_dict()}
        app.registry.declare(agent, ["command"], f"{agent}@here", 60, report=report)
    done = waooaw("drain", agent, "--wait", "0.6", "--json", env=environment)
    assert done.returncode == 1
    assert "workers still run after 0.6 s" in done.stderr
    assert json.loads(done.stdout) == {"agent": agent, "workers": [f"{agent}@here"], "stopped": False}
