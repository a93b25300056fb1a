"""The setting `waooaw_log_format = "json"`: each record of a process is one line of JSON, whatever it says."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import PROBE_FOLDER, Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, RequestResponseHandler
from waooaw_celery.errors import RemoteError
from waooaw_celery.monitoring.json_log import JsonFormatter, note_facts
from waooaw_celery.testing.embedded import end

CONFIDENTIAL = "born-1815-in-london"
HOSTILE = 'first\n{"level": "FORGED"}\n[2026-11-28 23:00:00: ERROR] forged \x1b[2J\x9b31m\u202e"\\'
ALWAYS = {"time", "level", "logger", "message", "pid", "process"}


@contextmanager
def running(
    broker: Broker, folder: Path, *options: str, log_format: str = "json", **variables: str
) -> Iterator[tuple[AgentApp, str, Path]]:
    """Run a worker with its standard error in a file of its own; yields an application, the agent, the file."""
    app, name = broker.app(), broker.name()
    node = f"{name}@{socket.gethostname()}"
    env = os.environ | {
        "PROBE_NAME": name,
        "PROBE_FOLDER": str(folder),
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
        "WAOOAW_LOG_FORMAT": log_format,
        "PYTHONWARNINGS": "ignore",  # Celery warns of root before it sets up its log
        **variables,
    }
    command = [sys.executable, "-m", "celery", "-A", "json_log_probe", "worker", "-n", node, "-c", "1"]
    command += ["--without-mingle", "--without-gossip", *options]
    log = folder / "stderr"
    with log.open("wb") as stderr, (folder / "stdout").open("wb") as stdout:
        worker = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=env, cwd=PROBE_FOLDER, start_new_session=True
        )
    try:
        until(lambda: f"{node} ready" in log.read_text() or worker.poll() is not None, "the worker")
        assert worker.poll() is None, log.read_text()
        yield app, name, log
    finally:
        end(worker)
        app.close()


def records(log: Path) -> list[dict[str, Any]]:
    """Return the records of a log, each line of which must be an object with the keys that are always there."""
    lines = log.read_text(encoding="ascii").split("\n")
    assert lines.pop() == ""
    found = [json.loads(line) for line in lines]
    for each in found:
        assert each.keys() >= ALWAYS
        assert datetime.fromisoformat(each["time"]).utcoffset() == timedelta(0)
    return found


def of(found: list[dict[str, Any]], beginning: str) -> dict[str, Any]:
    """Return the one record whose message begins with a text."""
    [record] = [each for each in found if each["message"].startswith(beginning)]
    return record


POOLS = (
    pytest.param("valkey", ("-P", "prefork", "-l", "DEBUG"), id="valkey-prefork"),
    pytest.param("rabbitmq", ("-P", "threads", "-l", "DEBUG"), id="rabbitmq-threads", marks=pytest.mark.rabbitmq),
    pytest.param("valkey", ("-P", "solo", "-l", "INFO"), id="valkey-solo"),
    pytest.param("valkey", ("-P", "gevent", "-l", "INFO"), id="valkey-gevent"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), POOLS)
def test_each_line_of_a_workers_log_is_json(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, options: tuple[str, ...]
) -> None:
    """Hostile texts, values without a text and tracebacks are written on one line, with their message's facts."""
    broker = request.getfixturevalue(f"{kind}_broker")
    with running(broker, tmp_path, *options) as (app, name, log):
        requests = RequestResponseHandler(app)
        requests.request(name, "log", {"text": HOSTILE}, timeout=20)
        requests.request(name, "log_later", {"text": HOSTILE}, timeout=20)
        with pytest.raises(RemoteError):
            requests.request(name, "fail", {"text": CONFIDENTIAL}, timeout=20)
        until(lambda: "raised unexpected" in log.read_text(), "the failure")
    found = records(log)
    for beginning in ("module: first", "task: first", "before: first", "within: first", "thread: first"):
        record = of(found, beginning)
        assert (record["agent"], record["attempt"]) == (name, 1), record
        assert record["handler"] == ("log" if beginning[0] in "mt" and beginning[1] != "h" else "log_later")
        assert {"message_id", "conversation_id", "correlation_id"} <= record.keys()
    assert of(found, "print: first")["logger"] == "celery.redirected"
    assert "\\n" in of(found, "module: first")["message"], "it is escaped as in text"
    assert of(found, "module: first")["message_id"] == of(found, "task: first")["message_id"]
    surrogate = of(found, "surrogate: ")
    assert (surrogate["action"], surrogate["attempt"]) == ("extra", "nan")
    assert len([each for each in found if "cannot be formatted" in each["message"]]) == 2
    assert "conversation_id" not in of(found, "other")
    data = of(found, "data")
    assert (data.keys() & {"data", "payload"}) == set()
    assert data["workflow_id"].startswith("<class")
    assert "Talkative: first" in of(found, "caught")["exception"]
    assert "\n" in of(found, "caught")["exception"]
    failure = next(each for each in found if "raised unexpected" in each["message"])
    assert (failure["agent"], failure["handler"]) == (name, "fail")
    assert "in fail" in failure["exception"]
    assert any(each["message"].endswith("received") and each["handler"] == "fail" for each in found)
    assert CONFIDENTIAL not in log.read_text()
    assert not [each for each in found if each["level"] == "FORGED"]


@pytest.mark.slow
def test_a_record_names_its_attempt_and_a_lost_process(valkey_broker: Broker, tmp_path: Path) -> None:
    """The second attempt is 2, a batch has no message, and the pool's own records of lost processes are JSON."""
    with running(valkey_broker, tmp_path, "-P", "prefork", "-l", "INFO") as (app, name, log):
        assert RequestResponseHandler(app).request(name, "retry_once", {"text": CONFIDENTIAL}, timeout=20) == 1
        bus = MessageBus(app)
        query = Message(from_agent="tests", to_agent=name, message_type=MessageType.QUERY)
        bus.send(query)
        assert settled(app, query.message_id) is MessageStatus.HANDLED
        command = Message(from_agent="tests", to_agent=name, payload={"die": str(tmp_path / "died")})
        bus.send(command)
        assert settled(app, command.message_id) is MessageStatus.HANDLED
    found = records(log)
    attempts = [of(found, f"attempt {number}") for number in (1, 2)]
    assert [each["attempt"] for each in attempts] == [1, 2]
    assert len({each["message_id"] for each in attempts}) == 1
    batch = of(found, "batch of 1")
    assert (batch["agent"], batch["handler"]) == (name, "query")
    assert not batch.keys() & {"message_id", "attempt"}
    assert any("SIGKILL" in each["message"] and each["logger"] == "multiprocessing" for each in found)
    assert CONFIDENTIAL not in log.read_text()


@pytest.mark.slow
def test_a_record_names_the_current_span(valkey_broker: Broker, tmp_path: Path) -> None:
    """Within a span of OpenTelemetry, a record has its ids; outside it has none."""
    pytest.importorskip("opentelemetry.sdk")
    with running(valkey_broker, tmp_path, "-P", "solo", "-l", "INFO") as (app, name, log):
        message = Message(from_agent="tests", to_agent=name, payload={"span": 1})
        MessageBus(app).send(message)
        assert settled(app, message.message_id) is MessageStatus.HANDLED
    found = records(log)
    within = of(found, "span ")
    assert within["message"] == f"span {within['trace_id']}"
    assert len(within["span_id"]) == 16
    assert "trace_id" not in of(found, "no span")


@pytest.mark.slow
def test_text_is_the_default_and_unchanged(valkey_broker: Broker, tmp_path: Path) -> None:
    """Without the setting, the log has Celery's format."""
    with running(valkey_broker, tmp_path, "-l", "INFO", log_format="text") as (_, name, log):
        [ready] = [line for line in log.read_text().split("\n") if f"{name}@" in line and "ready" in line]
        assert ready.startswith("[2")
        assert "INFO/MainProcess]" in ready


@pytest.mark.slow
def test_beat_writes_json(valkey_broker: Broker, tmp_path: Path) -> None:
    """The log of beat is JSON too."""
    env = os.environ | {"CELERY_BROKER_URL": valkey_broker.url, "WAOOAW_LOG_FORMAT": "json", "PROBE_NAME": "b"}
    command = [sys.executable, "-m", "celery", "-q", "-A", "json_log_probe", "beat", "-l", "INFO"]
    command += ["-s", str(tmp_path / "schedule")]
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        beat = subprocess.Popen(command, stderr=stderr, env=env, cwd=PROBE_FOLDER, start_new_session=True)
    try:
        until(lambda: "beat: Starting" in log.read_text(), "beat")
    finally:
        end(beat)
    assert of(records(log), "beat: Starting")["logger"] == "celery.beat"


def record_of(**extra: Any) -> logging.LogRecord:
    """Return a record of a logger."""
    record = logging.LogRecord("tests", logging.INFO, __file__, 1, "said", (), None)
    vars(record).update(extra)
    return record


def test_what_cannot_be_written_is_said() -> None:
    """A record whose value has no repr is replaced by one that says so, and nothing is raised."""

    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    written = json.loads(JsonFormatter().format(record_of(workflow_id=Hostile())))
    assert written["message"] == "a record of tests cannot be written: RuntimeError"
    raising: Any = lambda _: 1 / 0  # noqa: E731
    assert "ZeroDivisionError" in JsonFormatter(raising).format(record_of())


def test_a_handler_without_the_filter_writes_safe_text_too() -> None:
    """As one that a project has set up itself: the text is escaped, also where its arguments do not fit."""
    assert json.loads(JsonFormatter().format(record_of(msg=HOSTILE)))["message"].startswith("first\\n{")
    wrong = json.loads(JsonFormatter().format(record_of(msg="%d", args=("text",))))
    assert "cannot be formatted" in wrong["message"]
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = record_of(exc_info=sys.exc_info())
    assert "\x1b" not in json.loads(JsonFormatter().format(record))["exception"]


def test_facts_of_the_context_are_written() -> None:
    """What code notes of itself stands in its records, unless the record says otherwise."""
    import contextvars

    def write(**extra: Any) -> Any:
        note_facts(workflow_id="w-1", agent="writer")
        return json.loads(JsonFormatter().format(record_of(**extra)))

    assert contextvars.copy_context().run(write)["workflow_id"] == "w-1"
    assert contextvars.copy_context().run(write, workflow_id="w-2")["workflow_id"] == "w-2"
    assert "workflow_id" not in contextvars.copy_context().run(write, agent="reader")
    assert "workflow_id" not in json.loads(JsonFormatter().format(record_of()))
