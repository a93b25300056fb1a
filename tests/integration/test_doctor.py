"""`waooaw doctor` finds each fault of a running system, says what to do about it, and waits for no dead server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from doctor_checks import look, worst
from faults.servers import Valkey, lone_valkey
from postgres_server import Server
from process_pool import waooaw
from sqlalchemy import make_url, text
from support import Broker, lone_database

from waooaw_celery import Agent, AgentApp, Message, MessageBus, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.diagnostics import ledger as ledger_checks
from waooaw_celery.maintenance.diagnostics.examination import CHECK_SECONDS, CHECKS, examine
from waooaw_celery.maintenance.diagnostics.finding import Finding, State, ok
from waooaw_celery.maintenance.diagnostics.housekeeping import housekeeping
from waooaw_celery.maintenance.diagnostics.settings import handlers_of_this_application, settings, versions
from waooaw_celery.maintenance.diagnostics.workers import workers_for_what_waits
from waooaw_celery.maintenance.tasks import PURGE, RECOVER, SWEEP, register_periodic_tasks


@pytest.fixture(scope="module")
def redis() -> Iterator[Valkey]:
    """A Valkey that stores messages on disk, whose settings these tests change."""
    with lone_valkey() as server:
        yield server


# --- the ledger


def test_a_ledger_of_another_version_fails(redis: Valkey, postgres_url: str, tmp_path: Path) -> None:
    """Without tables, and with those of another version, the finding says to upgrade them."""
    checks = [ledger_checks.ledger_database, ledger_checks.ledger_schema, ledger_checks.spool]
    with lone_database(postgres_url) as url:
        config = {"waooaw_database_url": url, "waooaw_spool_folder": str(tmp_path / "spool")}
        assert "waooaw db upgrade" in worst(look(redis.url, *checks, **config))
        with closing(create_app(broker_url=redis.url, result_backend=redis.url, **config)) as app:
            schema.upgrade(app.database)
            found = examine(app, checks)
            assert {each.state for each in found} == {State.OK}
            assert "PostgreSQL" in found[0].sentence
            with app.database.begin("break it") as connection:
                connection.execute(text("UPDATE waooaw_alembic_version SET version_num = '0000'"))
            assert "the ledger's schema is 0000" in worst(examine(app, checks))


def test_missing_rights_on_the_ledger_are_named(redis: Valkey, postgres_url: str) -> None:
    """Without INSERT it fails, without DELETE it is a warning, and each finding has the GRANT to run."""
    role = f"doctor_{uuid4().hex[:8]}"
    with lone_database(postgres_url) as url, closing(create_app(waooaw_database_url=url)) as owner:
        schema.upgrade(owner.database)

        def run(*commands: str) -> None:
            for command in commands:
                with owner.database.begin("change rights") as connection:
                    connection.execute(text(command))

        run(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        try:
            rights = f"ON ALL TABLES IN SCHEMA public TO {role}"
            run(f"GRANT SELECT, UPDATE {rights}")
            limited = make_url(str(url)).set(username=role, password="secret")  # noqa: S106
            config = {"waooaw_database_url": limited.render_as_string(hide_password=False)}
            found = look(redis.url, ledger_checks.ledger_permissions, **config)
            assert "Run `GRANT INSERT ON waooaw_" in worst(found)
            assert "Run `GRANT DELETE ON waooaw_" in worst(found, State.WARN)
            run(f"GRANT INSERT, DELETE {rights}")
            assert worst(look(redis.url, ledger_checks.ledger_permissions, **config)) == ""
        finally:
            run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_database_that_takes_no_writes_fails(redis: Valkey, postgres_url: str) -> None:
    """Such as a standby, or one with default_transaction_read_only."""
    with lone_database(postgres_url) as url:
        name = url.rpartition("/")[2].partition("?")[0]
        with closing(create_app(waooaw_database_url=url)) as app, app.database.begin("set it") as connection:
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        found = look(redis.url, ledger_checks.ledger_database, waooaw_database_url=url)
        assert "takes no writes. Its URL must lead to the primary" in worst(found)


# --- settings and versions


def test_wrong_settings_are_the_only_finding(redis: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else can be checked then."""
    monkeypatch.setenv("WAOOAW_STALL_SECONDS", "soon")
    [finding] = look(redis.url)
    assert finding.state is State.FAIL
    assert "WAOOAW_STALL_SECONDS" in finding.sentence


def test_handlers_with_which_a_worker_does_not_start_fail(redis: Valkey) -> None:
    """The check is the one of a worker's start."""
    with closing(create_app(broker_url=redis.url, result_backend=redis.url)) as app:
        agent = Agent("once", app)
        assert worst(examine(app, [handlers_of_this_application])) == ""
        agent.method(once=True)(work)
        assert "once.work has once=True" in worst(examine(app, [handlers_of_this_application]))


def work() -> None:
    """Do nothing."""


def test_versions_that_are_not_supported_fail(tmp_path: Path) -> None:
    """A Celery that is too old is named, with the versions that are supported."""
    old = tmp_path / "celery-5.3.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: celery\nVersion: 5.3.0\n")
    code = (
        "from waooaw_celery.maintenance.diagnostics.settings import versions\n"
        "print([(each.state.value, each.sentence) for each in versions(None)])"
    )
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert "('fail', 'not supported: celery 5.3.0 (needed: " in done.stdout
    [finding] = versions(create_app())
    assert finding.state is State.OK


# --- workers and housekeeping


def test_messages_without_a_worker_fail(redis: Valkey) -> None:
    """The finding names the agent, and how many messages wait."""
    name = f"absent-{uuid4().hex[:8]}"
    config = {"waooaw_agents": [name], "waooaw_sender": "tests"}
    with closing(create_app(broker_url=redis.url, result_backend=redis.url, **config)) as app:
        assert worst(examine(app, [workers_for_what_waits])) == ""
        MessageBus(app).send(Message(from_agent="tests", to_agent=name))
        assert f"1 message for {name} wait, and no worker" in worst(examine(app, [workers_for_what_waits]))
        app.registry.declare(name, ["command"], f"{name}@here", 60)
        assert worst(examine(app, [workers_for_what_waits])) == ""
        app.registry.declare(name, ["command"], f"{name}@here", 60, report={"stalled": True})
        assert f"{name} is STALLED" in worst(examine(app, [workers_for_what_waits]))


def test_housekeeping_that_does_not_run_is_warned_of(tmp_path: Path) -> None:
    """It never ran, its tasks wait, it runs, it stopped, and the purge was missed."""
    with lone_valkey() as server:
        config: dict[str, Any] = {
            "broker_url": server.url,
            "result_backend": server.url,
            "waooaw_database_url": f"sqlite:///{tmp_path / 'ledger'}",
            "waooaw_spool_folder": str(tmp_path / "spool"),
        }
        with closing(create_app(**config)) as app:
            schema.upgrade(app.database)
            register_periodic_tasks(app)
            sentence = worst(examine(app, [housekeeping]), State.WARN)
            assert "waooaw.sweep has never run; waooaw.recover has never run" in sentence
            assert "start beat" in sentence
            app.tasks[SWEEP].apply_async()
            assert "1 task of beat wait: start the system's worker" in worst(
                examine(app, [housekeeping]), State.WARN
            )
            for task in (SWEEP, RECOVER):
                app.tasks[task].apply(throw=True)
            found = examine(app, [housekeeping])
            assert [each.state for each in found] == [State.OK, State.OK]
            assert "for the first time" in found[1].sentence
            set_back(server, since=timedelta(days=2))
            assert "it has never run, and was due at" in worst(examine(app, [housekeeping]), State.WARN)
            app.tasks[PURGE].apply(throw=True)
            assert worst(examine(app, [housekeeping]), State.WARN) == ""
            set_back(server, **{PURGE: timedelta(days=3)})
            assert "it ran 3 d ago, and was due at" in worst(examine(app, [housekeeping]), State.WARN)
            set_back(server, **{SWEEP: timedelta(minutes=10)})
            assert "waooaw.sweep ran 10 min ago, and should every 30 s" in worst(
                examine(app, [housekeeping]), State.WARN
            )


def set_back(server: Valkey, **times: timedelta) -> None:
    """Let tasks have run so long ago."""
    for name, passed in times.items():
        server.client.hset("waooaw:housekeeping", name, (datetime.now(UTC) - passed).timestamp())


# --- the command, and servers that do not answer


def test_a_frozen_redis_hides_no_other_finding(postgres_url: str, tmp_path: Path) -> None:
    """The command ends within its deadline, and still says that the ledger has no tables."""
    with lone_database(postgres_url) as url, lone_valkey() as server:
        server.freeze()
        began = time.monotonic()
        env = {
            "CELERY_BROKER_URL": server.url,
            "CELERY_RESULT_BACKEND": server.url,
            "WAOOAW_DATABASE_URL": url,
            "WAOOAW_SPOOL_FOLDER": str(tmp_path / "spool"),
        }
        done = waooaw("doctor", "--json", env=env)
        assert time.monotonic() - began < CHECK_SECONDS + 10
        assert done.returncode == 1, done.stderr
        found = {each["name"]: each for each in json.loads(done.stdout)}
        assert found["broker"]["state"] == found["Redis of the broker"]["state"] == "fail"
        assert found["ledger database"]["state"] == "ok"
        assert "waooaw db upgrade" in found["ledger schema"]["sentence"]


@pytest.mark.slow
def test_a_frozen_database_hides_no_other_finding(redis: Valkey, server: Server, tmp_path: Path) -> None:
    """Its checks fail in time, and those of Redis are right."""
    config = {"waooaw_database_url": server.url, "waooaw_spool_folder": str(tmp_path / "spool")}
    server.freeze()
    try:
        began = time.monotonic()
        found = {each.name: each.state for each in look(redis.url, **config)}
        assert time.monotonic() - began < CHECK_SECONDS + 5
    finally:
        server.thaw()
    assert found["Redis of the broker"] is State.OK
    assert found["broker"] is State.OK
    assert [name for name, state in found.items() if state is State.FAIL and "ledger" in name]


def test_stopped_servers_fail_at_once(tmp_path: Path) -> None:
    """Each check says that its server does not answer; none shows a traceback."""
    env = {
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0",
        "WAOOAW_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "WAOOAW_SPOOL_FOLDER": str(tmp_path / "spool"),
    }
    began = time.monotonic()
    done = waooaw("doctor", "--json", env=env)
    assert time.monotonic() - began < CHECK_SECONDS
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    failed = {each["name"] for each in json.loads(done.stdout) if each["state"] == "fail"}
    assert failed >= {"broker", "Redis of the broker", "ledger database", "ledger schema"}


def test_strict_fails_for_warnings(valkey_broker: Broker) -> None:
    """Without it, the exit code of warnings is 0."""
    env = {"CELERY_BROKER_URL": valkey_broker.url, "CELERY_RESULT_BACKEND": valkey_broker.redis_url}
    lax, strict = waooaw("doctor", "--json", env=env), waooaw("doctor", "--strict", "--json", env=env)
    states = {each["state"] for each in json.loads(lax.stdout)}
    assert "warn" in states
    assert lax.returncode == (1 if "fail" in states else 0)
    assert strict.returncode == 1


def test_a_check_that_hangs_or_raises_does_not_stop_the_others(redis: Valkey) -> None:
    """Both are failures, with what they found before."""

    def hangs(_: AgentApp) -> Iterator[Finding]:
        yield ok("before", "it began")
        time.sleep(30)

    def raises(_: AgentApp) -> Iterator[Finding]:
        raise RuntimeError("a defect")

    with closing(create_app(broker_url=redis.url, result_backend=redis.url)) as app:
        began = time.monotonic()
        found = examine(app, [hangs, raises, settings], seconds=1)
        assert time.monotonic() - began < 5
    assert [each.state for each in found] == [State.OK, State.FAIL, State.FAIL, State.OK]
    assert "did not end within 1 s" in found[1].sentence
    assert "RuntimeError: a defect" in found[2].sentence
    assert len(CHECKS) > 10
