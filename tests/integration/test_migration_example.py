"""The example ``examples/migration``: a stock Celery and Django project moves to agents, one task at a time."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import until

from waooaw_celery.testing.embedded import end, spawn, valkey

pytest.importorskip("django_celery_beat")

EXAMPLE = Path(__file__).parents[2] / "examples" / "migration"
PLACE = "import django; django.setup(); from orders.services import place_order; print(place_order('Ada', 10).pk)"
SCHEDULE = """
import django; django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
PeriodicTask.objects.update_or_create(name="report", defaults={"task": "orders.tasks.report", "interval": every})
"""


@dataclass
class Shop:
    """The project of the example, with a database and a broker of its own."""

    folder: Path
    env: dict[str, str]
    stack: ExitStack
    processes: dict[str, Any] = field(default_factory=dict)

    def run(self, stage: str, *command: str) -> str:
        """Run a command of Python in the folder of a stage, and return its output."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=EXAMPLE / stage,
            env=self.env,
            check=False,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode in (0, 1), done.stderr.decode()
        return done.stdout.decode()

    def start(self, name: str, stage: str, *options: str) -> None:
        """Start one of Celery's programs in the folder of a stage."""
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", "shop", *options]
        process = spawn(command, log=log, env=self.env, cwd=EXAMPLE / stage)
        self.processes[name] = process
        self.stack.callback(end, process)
        if "worker" in options:
            until(lambda: "ready" in log.read_text() or process.poll() is not None, f"the start of {name}", 40)
        assert process.poll() is None, log.read_text()

    def worker(self, name: str, stage: str, queues: str) -> None:
        """Start a worker of a stage for some queues."""
        options = ("--without-mingle", "--without-gossip", "-l", "INFO", "-c", "1")
        self.start(name, stage, "worker", "-n", f"{name}@%h", "-Q", queues, *options)

    def place_orders(self, stage: str, count: int) -> None:
        """Place orders with the code of a stage, and wait until each has an invoice and one mail."""
        ids = [int(self.run(stage, "-c", PLACE)) for _ in range(count)]
        marks = ",".join("?" * count)
        query = f"SELECT count(*) FROM orders_order WHERE id IN ({marks}) AND invoice <> '' AND mails = 1"

        def is_done() -> bool:
            return self.query(query, ids) == count

        until(is_done, f"the orders of {stage}", 30)

    def query(self, sql: str, values: Any = ()) -> int:
        """Return the number that a query of the project's database returns."""
        with closing(sqlite3.connect(self.env["SHOP_DATABASE"], timeout=10)) as database:
            return int(database.execute(sql, values).fetchone()[0])

    def log(self, name: str) -> str:
        """Return the log of a process."""
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(params=["valkey", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """The project on each broker."""
    with ExitStack() as stack:
        redis_url = stack.enter_context(valkey())
        broker_url = redis_url if request.param == "valkey" else request.getfixturevalue("amqp_url")
        settings = {"SHOP_DATABASE": f"{tmp_path}/shop.sqlite", "SHOP_BROKER": broker_url, "SHOP_REDIS": redis_url}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "WAOOAW_"))}
        env = others | settings | {"DJANGO_SETTINGS_MODULE": "shop.settings"}
        shop = Shop(tmp_path, env, stack)
        shop.run("before", "manage.py", "migrate", "--run-syncdb", "--verbosity", "0")
        yield shop


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_stage_of_the_migration_runs(shop: Shop) -> None:
    """Old and new workers share the broker; every order has its invoice and one mail at each stage."""
    shop.worker("old", "before", "celery")
    shop.place_orders("before", 1)
    assert "orders.tasks.send_mail" in shop.log("old")

    shop.worker("new", "step_1", "celery,agent.mailer")
    shop.place_orders("step_1", 2)
    end(shop.processes["old"])
    shop.place_orders("step_1", 1)
    assert "Task mailer.command[" in shop.log("new")
    end(shop.processes["new"])

    shop.run("after", "-m", "waooaw_celery", "-A", "shop", "db", "upgrade")
    shop.worker("clerk", "after", "agent.clerk,celery")
    shop.worker("mailer", "after", "agent.mailer")
    shop.place_orders("after", 2)
    assert shop.query("SELECT count(*) FROM waooaw_messages WHERE to_agent IN ('clerk', 'mailer')") == 4
    assert "Task mailer.command[" not in shop.log("clerk")

    shop.run("after", "-c", SCHEDULE)
    shop.start("beat", "after", "beat", "--max-interval", "1")
    until(lambda: shop.query("SELECT count(*) FROM orders_report") > 0, "a report that beat asks for", 30)


@pytest.mark.slow
def test_the_doctor_says_what_changes(shop: Shop) -> None:
    """It names what the stock project would get, and which task would be named like a handler."""
    found = json.loads(shop.run("before", "-m", "waooaw_celery", "-A", "shop", "doctor", "--project", "--json"))
    states = {finding["name"]: finding["state"] for finding in found}
    assert states == {
        "acknowledgement": "warn",
        "prefetch": "warn",
        "time limit": "warn",
        "results": "warn",
        "serializer": "ok",
        "priorities": "ok",
        "expiry": "warn",
        "task names": "ok",
        "queues": "warn",
        "broker": "ok",
    }
    after = json.loads(shop.run("after", "-m", "waooaw_celery", "-A", "shop", "doctor", "--project", "--json"))
    assert {finding["name"]: finding["state"] for finding in after}["queues"] == "ok"
