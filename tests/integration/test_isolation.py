"""Several systems on one Redis: every key and channel of a system has its prefix, and an ACL can enforce that."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import chord, group
from process_pool import spawn, waooaw
from redis import Redis
from sqlalchemy.engine import make_url
from support import Broker, lone_database, settled, until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.messages.topics.schemas import TopicSchema
from waooaw_celery.store.keys import key_prefix
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.testing.embedded import end_all, free_port, valkey

PREFIX = "lab:"
OPTIONS: dict[str, Any] = {"broker_transport_options": {"global_keyprefix": PREFIX}}


class LabServer:
    """A server on which a user of each kind of process may use only the keys and channels of one prefix.

    Args:
        url: the URL of the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin: Any = Redis.from_url(url, decode_responses=True)

    def add_user(self, name: str, *rules: str) -> str:
        """Add a user with these rules, and return the URL with its name."""
        self.admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rules)
        return self.url.replace("redis://", f"redis://{name}:secret@")

    def refusals(self) -> list[str]:
        """Return what was refused, and to whom."""
        entries = self.admin.acl_log()
        return sorted({f"{entry['username']} {entry['reason']} {entry['object']}" for entry in entries})

    def foreign_keys(self) -> list[str]:
        """Return the keys without the prefix."""
        return [key for key in self.admin.keys("*") if not key.startswith(PREFIX)]


def documented_rules() -> dict[str, list[str]]:
    """Return the rules of each kind of process that the documentation gives."""
    page = Path(__file__).parents[2] / "docs" / "run" / "shared-redis.md"
    lines = re.findall(r"^ACL SETUSER lab-(\w+) on >SECRET (.*)$", page.read_text(), re.MULTILINE)
    return {kind: rules.split() for kind, rules in lines}


@pytest.fixture
def lab() -> Iterator[LabServer]:
    with valkey(port=free_port()) as url:
        server = LabServer(url)
        yield server
        server.admin.close()
        gc.collect()  # Celery's results unsubscribe when they are collected, which needs the server


class Day:
    """The processes of one system on the server, each with its own user.

    Args:
        lab: the server.
        folder: a folder for logs and the spool.
        database_url: the URL of the ledger's database, or None.
        rules: the ACL rules of each kind of process.
    """

    def __init__(
        self, lab: LabServer, folder: Path, database_url: str | None, rules: dict[str, list[str]]
    ) -> None:
        self._urls = {kind: lab.add_user(f"lab-{kind}", *rule) for kind, rule in rules.items()}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder, self._database_url = folder, database_url
        self.name = f"day-{uuid4().hex[:8]}"
        self.app = self._broker("sender").app(**OPTIONS, waooaw_rate_limit="100000/second")

    def start(self) -> None:
        """Start the agent's worker, the system's worker and beat."""
        settings = {**OPTIONS, "waooaw_sweep_seconds": 1, "waooaw_recover_seconds": 1, "waooaw_recover_after": 1}
        worker = {"module": "day_probe", **settings, "waooaw_rate_limit": "100000/second"}
        self._processes.append(self._broker("worker").start(self.name, self.app, **worker))
        system = self._broker("system")
        arguments = ("-Q", "waooaw.system")
        for node, command in (("system", ["worker", "-n", f"system-{self.name}@%h", "-c", "1", *arguments]),):
            self._processes.append(self._spawn(system, node, command, settings))
        self._processes.append(self._spawn(system, "beat", ["beat", "-s", f"{self._folder}/beat"], settings))

    def cli(self, *arguments: str) -> Any:
        """Run a command with ``--json``, and return its output."""
        broker = self._broker("cli")
        env = self._env(broker, OPTIONS) | {"WAOOAW_APP": "day_probe", "WAOOAW_SENDER": "tests"}
        env["PYTHONPATH"] = str(Path(__file__).parent)
        done = waooaw(*arguments, "--json", env=env)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout or "null")

    def logs(self) -> str:
        """Return the logs of all processes."""
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    def close(self) -> None:
        """End the processes and the application."""
        end_all(self._processes)
        self.app.close()

    def _broker(self, kind: str) -> Broker:
        return Broker(self._urls[kind], self._urls[kind], self._folder, self._database_url)

    def _env(self, broker: Broker, settings: dict[str, Any]) -> dict[str, str]:
        env = {
            "PROBE_NAME": self.name,
            "PROBE_SETTINGS": json.dumps(settings),
            "CELERY_BROKER_URL": broker.url,
            "CELERY_RESULT_BACKEND": broker.url,
            "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
        }
        return env if broker.database_url is None else env | {"WAOOAW_DATABASE_URL": broker.database_url}

    def _spawn(
        self, broker: Broker, node: str, command: list[str], settings: dict[str, Any]
    ) -> subprocess.Popen[bytes]:
        env = os.environ | self._env(broker, settings) | {"PROBE_SYSTEM": "1"}
        words = [sys.executable, "-m", "celery", "-A", "day_probe", *command]
        return spawn(words, log=self._folder / f"{node}.log", env=env, cwd=Path(__file__).parent)


def work_through(day: Day) -> None:
    """Do everything once that a system does in a day."""
    app, name = day.app, day.name
    bus, requests, events = MessageBus(app), RequestResponseHandler(app), EventBus(app)

    def message(**payload: object) -> Message:
        return Message(from_agent="tests", to_agent=name, payload=payload)

    # sends, receipts, retries, dead letters
    assert settled(app, bus.send(message()).message_id) is MessageStatus.HANDLED
    assert settled(app, bus.send(message(fail_once=True)).message_id) is MessageStatus.HANDLED
    failed = bus.send(message(fail=True))
    assert settled(app, failed.message_id) is MessageStatus.FAILED
    for sent in bus.send_many([message() for _ in range(3)]):
        assert settled(app, sent.message_id) is MessageStatus.HANDLED
    [letter] = app.dead_letters.list()
    assert app.dead_letters.retry([letter], by="tests")
    until(lambda: [each for each in app.dead_letters.list() if each.id != letter.id], "the second dead letter")
    app.dead_letters.discard(app.dead_letters.list(), reason="enough", by="tests")
    # requests, streams, canvas
    assert requests.request(name, "echo", {"value": 1}, timeout=20) == 1
    with requests.stream(name, "count", {"to": 3}, timeout=20) as stream:
        assert list(stream) == [0, 1, 2]
    assert requests.request(name, "ask_later", {"to_agent": name}, timeout=20)
    echo = app.signature(f"{name}.echo", kwargs={"value": 2})
    assert chord(group(echo, echo), app.signature(f"{name}.echo"))  # its keys are those of groups
    assert group(echo, echo).apply_async().get(timeout=20) == [2, 2]
    # events, subscriptions, schemas
    events.publish("day.ended", {"n": 1}, from_agent="tests")
    assert [each.subscriber for each in events.subscriptions()] == [f"{name}.ended"]
    events.unsubscribe(f"{name}.ended")
    events.resubscribe(f"{name}.ended")
    # limits
    app.limiter.set_quota("tests", "1000/second")
    app.limiter.check_limit("tests")
    app.limiter.reset("tests")
    app.limiter.set_quota("tests", None)
    # cancels, and messages that expire
    later = app.signature(f"{name}.echo", kwargs={"value": 3}).apply_async(countdown=60)
    bus.cancel(later.id)
    unbegun = Message(from_agent="tests", to_agent="nobody", payload={}, ttl_seconds=1)
    assert settled(app, bus.send(unbegun).message_id) is MessageStatus.EXPIRED  # the system's worker notes it


@pytest.mark.slow
@pytest.mark.parametrize("ledger", [False, True], ids=["redis", "ledger"])
def test_whole_day_under_one_prefix(
    lab: LabServer, tmp_path: Path, request: pytest.FixtureRequest, ledger: bool
) -> None:
    """With the permissions that the documentation gives to each kind of process: nothing is refused."""
    with ExitStack() as stack:
        database_url = None
        if ledger:
            database_url = stack.enter_context(lone_database(request.getfixturevalue("postgres_url")))
            database = Database(make_url(database_url))
            schema.upgrade(database)
            database.close()
        day = Day(lab, tmp_path, database_url, documented_rules())
        stack.callback(day.close)
        day.app.conf.waooaw_agents = ["nobody"]
        day.start()
        work_through(day)
        if ledger:
            assert RequestResponseHandler(day.app).request(day.name, "work", timeout=20) == 1
        for command in (["agents"], ["queues"], ["events", "subscriptions"], ["dead", "list"], ["doctor"]):
            day.cli(*command)
        day.cli("send", day.name, "{}")
        assert lab.refusals() == [], day.logs()
        assert lab.foreign_keys() == []


def own_quotas(app: AgentApp) -> list[str]:
    """Return the agents with quotas of their own."""
    return [agent for agent in app.limiter.quotas() if agent != "*"]


def test_systems_with_two_prefixes_do_not_meet(lab: LabServer, tmp_path: Path) -> None:
    """Staging neither knows production's agents and quotas nor publishes to its subscribers."""
    broker = Broker(lab.url, lab.url, tmp_path)
    apps = {
        prefix: broker.app(broker_transport_options={"global_keyprefix": prefix}, waooaw_agents=["worker-1"])
        for prefix in ("production:", "staging:", "")
    }
    with ExitStack() as stack:
        for app in apps.values():
            stack.callback(app.close)
        production = apps["production:"]
        production.registry.declare("archivist", ["command"], "archivist@here", 60)
        subscription = Subscription(agent="archivist", name="store", patterns=("order.*",))
        production.subscriptions.declare([subscription], [TopicSchema(topic="order.made", version="1", schema={})])
        production.limiter.set_quota("archivist", "1/hour")
        sent = MessageBus(production).send(Message(from_agent="tests", to_agent="worker-1", payload={}))
        assert production.receipts.get(sent.message_id).to_agent == "worker-1"
        for prefix in ("staging:", ""):
            other = apps[prefix]
            assert [agent.name for agent in other.registry.all()] == ["worker-1"]
            assert not EventBus(other).publish("order.made", {}, from_agent="tests").receipts
            assert other.subscriptions.read().schemas == ()
            assert own_quotas(other) == []
            assert other.receipts.recent() == []
        assert own_quotas(production) == ["archivist"]
        assert all(key.startswith("production:") for key in lab.admin.keys("*")), lab.admin.keys("*")


def test_prefix_of_results(lab: LabServer, tmp_path: Path) -> None:
    """Results have the broker's prefix, unless their own options name another one."""
    broker = Broker(lab.url, lab.url, tmp_path)
    with closing(broker.app(**OPTIONS)) as app:
        assert app.backend.get_key_for_task("x") == b"lab:celery-task-meta-x"
        assert app.backend.get_key_for_group("x") == b"lab:celery-taskset-meta-x"
    own = {"result_backend_transport_options": {"global_keyprefix": "answers:"}}
    with closing(broker.app(**OPTIONS, **own)) as app:
        assert app.backend.get_key_for_task("x") == b"answers:celery-task-meta-x"
        assert key_prefix(app.conf) == PREFIX
    with closing(broker.app(**own)) as app:
        assert key_prefix(app.conf) == "answers:"
    wrong = broker.app(broker_transport_options={"global_keyprefix": 1})
    with closing(wrong) as app, pytest.raises(ConfigurationError, match="must be a text"):
        app.check()


def test_prefix_with_signs_of_a_pattern(lab: LabServer, tmp_path: Path) -> None:
    """Limits are found by a pattern, in which the prefix stands for itself."""
    broker = Broker(lab.url, lab.url, tmp_path)
    options = [{"broker_transport_options": {"global_keyprefix": prefix}} for prefix in ("[a]*?:", "axx:")]
    with closing(broker.app(**options[0])) as odd, closing(broker.app(**options[1])) as other:
        odd.limiter.set_quota("planner", "1/hour")
        other.limiter.set_quota("archivist", "1/hour")
        assert [own_quotas(app) for app in (odd, other)] == [["planner"], ["archivist"]]
        odd.limiter.acquire("planner")
        odd.limiter.reset("planner")
        odd.limiter.check_limit("planner")


def test_queue_with_a_prefix_is_found(lab: LabServer, tmp_path: Path) -> None:
    """Kombu's client does not put the prefix before the key of EXISTS."""
    broker = Broker(lab.url, lab.url, tmp_path)
    with closing(broker.app(**OPTIONS, waooaw_agents=["nobody"])) as app:
        MessageBus(app).send(Message(from_agent="tests", to_agent="nobody", payload={}))
        with app.connection_for_write() as connection, connection.channel() as channel:
            assert channel.queue_declare("agent.nobody", passive=True).message_count == 1


@pytest.mark.rabbitmq
def test_prefix_where_the_broker_is_rabbitmq(amqp_url: str, lab: LabServer, tmp_path: Path) -> None:
    """RabbitMQ ignores the option; the Redis of agents, receipts and limits uses it."""
    broker = Broker(amqp_url, lab.url, tmp_path)
    name = broker.name()
    with closing(broker.app(**OPTIONS, waooaw_agents=[name], waooaw_rate_limit="100/second")) as app:
        try:
            sent = MessageBus(app).send(Message(from_agent="tests", to_agent=name, payload={}))
            assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.SENT
        finally:
            broker.clean()
    assert lab.admin.keys("*")
    assert lab.foreign_keys() == []
