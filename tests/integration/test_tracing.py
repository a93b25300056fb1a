"""Traces over several processes: what is sent in a span is handled in a child of it, in each way of sending."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import Broker, until

from waooaw_celery import MessageAuditTrail, MessageBus
from waooaw_celery.testing.embedded import end_all

FOLDER = Path(__file__).parent
#: Each way of sending, and the note of its handler.
NOTES = {
    "send": "command send",
    "send_many": "command many",
    "query": "query",
    "publish": "heard",
    "request": "double",
    "stream": "numbers",
    "delay": "double",
    "outbox": "command outbox",
    "workflow": "double",
}
#: The handlers of some of them.
HANDLERS = {"send": "command", "request": "double"}


class Probe:
    """An agent that traces, and what was traced."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.name = broker.name()
        self.app = broker.app(waooaw_agents=[self.name])
        self.processes: list[subprocess.Popen[bytes]] = []
        self._broker, self._file = broker, folder / "spans"

    def start(self, *pool: str, tracing: str = "otel", env: dict[str, str] | None = None, **settings: Any) -> None:
        """Start a worker of it."""
        self.processes.append(
            self._broker.start(
                *(self.name, self.app, *(pool or ("-P", "threads", "-c", "2"))),
                module="tracing_probe",
                env={"TRACING_FILE": str(self._file), "TRACING": tracing, **(env or {})},
                # Sentry replaces functions of Celery before others import them.
                new_interpreter="sentry" in tracing,
                waooaw_retries=0,
                **settings,
            )
        )

    def send(self, *ways: str, tracing: str = "otel", env: dict[str, str] | None = None) -> None:
        """Send from another process, in a span for each way."""
        settings = {"broker_url": self._broker.url, "result_backend": self._broker.redis_url}
        if self._broker.database_url is not None:
            settings["waooaw_database_url"] = self._broker.database_url
            settings["waooaw_spool_folder"] = str(self._broker.spool_folder)
        subprocess.run(
            [sys.executable, "tracing_sender.py", self.name, *ways],
            cwd=FOLDER,
            env=os.environ
            | {"TRACING_FILE": str(self._file), "TRACING": tracing, "PROBE_SETTINGS": json.dumps(settings)}
            | (env or {}),
            check=True,
            timeout=60,
        )

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return what was written down, with these values."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [
            line for line in map(json.loads, lines) if all(line.get(key) == value for key, value in wanted.items())
        ]

    def span(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Return the only span of a name, once it has ended."""
        until(lambda: self.lines(name=name, **wanted), f"span {name}")
        [found] = self.lines(name=name, **wanted)
        return found

    def notes_in(self, trace: str, what: str) -> list[dict[str, Any]]:
        """Return what handlers noted in a trace, once there is something."""
        until(lambda: self.lines(note=what, trace=trace), f"{what} in trace {trace}: {self.lines(note=what)}")
        return self.lines(note=what, trace=trace)

    def note(self, what: str, number: int = 1) -> list[dict[str, Any]]:
        """Return what handlers noted, once there are as many notes."""
        until(lambda: len(self.lines(note=what)) >= number, f"{number} notes of {what}")
        return self.lines(note=what)


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that takes spans by OTLP over HTTP; return its URL and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def probe(ledger_broker: Broker, tmp_path: Path) -> Iterator[Probe]:
    found = Probe(ledger_broker, tmp_path)
    with closing(found.app):
        yield found
        end_all(found.processes)


def test_each_way_of_sending_carries_the_trace_and_the_baggage(probe: Probe) -> None:
    """The span of the handler is a child of the span of the send, which is a child of the sender's own span."""
    probe.start()
    probe.send(*NOTES)
    for way, what in NOTES.items():
        own = probe.span(way)
        for note in probe.notes_in(own["trace"], what):
            process = probe.span(f"process {probe.name}", id=note["id"])
            [send] = probe.lines(id=process["parent"])
            assert (process["kind"], send["kind"]) == ("CONSUMER", "PRODUCER")
            assert send["parent"] == own["id"], way
            assert process["links"] == [send["id"]]
            assert note["tenant"] == "t1", way


def test_the_attributes_are_those_of_the_conventions(probe: Probe) -> None:
    """Names, ids and the agents; the ledger knows the trace too."""
    probe.start()
    probe.send("send")
    sent = probe.span(f"send {probe.name}")
    processed = probe.span(f"process {probe.name}")
    id_ = sent["attributes"]["messaging.message.id"]
    common = {
        "messaging.destination.name": f"agent.{probe.name}",
        "messaging.message.id": id_,
        "messaging.message.conversation_id": id_,
        "messaging.system": "redis",
        "waooaw.correlation_id": id_,
        "waooaw.from_agent": "tests",
        "waooaw.to_agent": probe.name,
        "waooaw.handler": "command",
        "waooaw.message_type": "command",
        "waooaw.priority": "NORMAL",
    }
    operation = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert sent["attributes"] == {**common, **operation}
    operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    assert processed["attributes"] == {**common, **operation, "waooaw.attempt": 1}
    assert MessageAuditTrail(probe.app.ledger).receipt(id_).trace_id == sent["trace"]


def test_what_a_handler_sends_is_in_its_trace(probe: Probe) -> None:
    """Also what a coroutine sends."""
    probe.start()
    probe.send("send_on", "query")
    for way in ("send_on", "query"):
        probe.notes_in(probe.span(way)["trace"], "command last")


def test_a_batch_is_one_span_with_a_link_to_each_message(probe: Probe) -> None:
    """It has no parent: its messages may come from several traces."""
    probe.start()
    probe.send("batch")
    probe.note("batch 4")
    span = probe.span(f"process {probe.name}")
    assert (span["parent"], span["attributes"]["messaging.batch.message_count"]) == (None, 4)
    [send] = probe.lines(kind="PRODUCER")
    assert span["links"] == [send["id"]] * 4


def test_a_retry_is_linked_to_the_attempt_before_it(probe: Probe) -> None:
    """Both attempts are children of the send; an error has its class and not its text."""
    probe.start()
    probe.send("fail_once", env={"TRACING_SECRET": "confidential"})
    until(lambda: len(probe.lines(name=f"process {probe.name}")) == 2, "both attempts")
    first, second = sorted(
        probe.lines(name=f"process {probe.name}"), key=lambda span: span["attributes"]["waooaw.attempt"]
    )
    assert first["parent"] == second["parent"]
    assert second["links"] == [second["parent"], first["id"]]
    assert (first["status"], first["attributes"]["error.type"]) == ("ERROR", "OSError")
    assert (first["attributes"]["waooaw.outcome"], second["status"]) == ("retried", "UNSET")
    assert "confidential" not in json.dumps(probe.lines())


@pytest.mark.parametrize("pool", ["prefork", "solo", "gevent"])
def test_the_pools_trace(probe: Probe, pool: str) -> None:
    """In prefork, the SDK is set up after the fork."""
    env = {"TRACING_PREFORK": "1"} if pool == "prefork" else {}
    probe.start("-P", pool, env=env)
    probe.send("send", "request")
    for way in ("send", "request"):
        own, [note] = probe.span(way), probe.note(NOTES[way])
        assert note["trace"] == own["trace"]


def test_a_trace_goes_on_through_an_agent_that_does_not_trace(probe: Probe) -> None:
    """What its handler sends has the trace context of the message that it handled."""
    probe.start(tracing="none")
    probe.send("send_on")
    own = probe.span("send_on")
    trail = MessageAuditTrail(probe.app.ledger)
    until(lambda: len(trail.query(to_agent=probe.name).records) == 2, "both messages")
    assert {record.trace_id for record in trail.query(to_agent=probe.name).records} == {own["trace"]}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_sends_its_spans_to_the_endpoint_of_a_setting(probe: Probe, pool: str) -> None:
    """With prefork, each of its processes does, and sends the last ones when it ends."""
    with collector() as (url, bodies):
        probe.start("-P", pool, tracing="none", waooaw_traces_endpoint=url)
        probe.send("send", "request")
        probe.note(NOTES["send"])
        probe.note(NOTES["request"])
        end_all(probe.processes)
    sent = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    resources = [spans for request in sent for spans in request.resource_spans]
    names = {
        attribute.value.string_value
        for each in resources
        for attribute in each.resource.attributes
        if attribute.key == "service.name"
    }
    assert names == {"tracing-probe"}
    found = [span.trace_id.hex() for each in resources for scope in each.scope_spans for span in scope.spans]
    assert sorted(found) == sorted(probe.span(way)["trace"] for way in ("send", "request"))


@pytest.mark.parametrize("where", ["start", "end"])
def test_tracing_that_is_broken_fails_no_message(probe: Probe, where: str) -> None:
    """A processor of spans that raises: messages are sent once, handled once, and answered."""
    probe.start(env={"TRACING_BREAKS": where})
    probe.send("send", "request", env={"TRACING_BREAKS": where})
    probe.note("command send")
    trail = MessageAuditTrail(probe.app.ledger)
    until(
        lambda: [each.receipt.status for each in trail.query(to_agent=probe.name).records] == ["handled"] * 2,
        "both messages",
    )
    assert [len(probe.lines(note=what)) for what in ("command send", "double")] == [1, 1]


def test_nothing_is_exported_when_nothing_is_sampled(probe: Probe) -> None:
    """The trace context travels nevertheless, with the flag that says so."""
    probe.start(env={"TRACING_SAMPLES": "none"})
    probe.send("send", env={"TRACING_SAMPLES": "none"})
    [note] = probe.note("command send")
    assert not probe.lines(kind="PRODUCER")
    assert not probe.lines(kind="CONSUMER")
    assert note["trace"] != "0" * 32


def test_beside_the_instrumentation_of_celery_no_span_appears_twice(probe: Probe) -> None:
    """Its spans have our attributes: the conversation is ours."""
    probe.start(tracing="otel,celery")
    probe.send("send", "request", tracing="otel,celery")
    for way in ("send", "request"):
        trace = probe.span(way)["trace"]
        assert len(probe.notes_in(trace, NOTES[way])) == 1
        process = probe.span(f"run/{probe.name}.{HANDLERS[way]}", trace=trace)
        [send] = probe.lines(trace=trace, kind="PRODUCER")
        assert probe.lines(trace=trace, kind="CONSUMER") == [process]
        assert process["scope"] == send["scope"] == "opentelemetry.instrumentation.celery"
        record = MessageBus(probe.app).receipt(process["attributes"]["messaging.message.id"])
        assert process["attributes"]["messaging.message.conversation_id"] == record.message_id
        assert process["attributes"]["waooaw.from_agent"] == "tests"


def test_sentry_joins_the_traces_and_our_frames_show_no_payload(probe: Probe) -> None:
    """Each way of sending; of the frames of an error, only those of the handler itself show a payload."""
    probe.start(tracing="sentry")
    failing = ("fail", "fail_async", "fail_method")
    ways = ("send", "request", "publish", "delay", *failing)
    probe.send(*ways, tracing="sentry", env={"TRACING_SECRET": "confidential"})
    until(lambda: len(probe.lines(sentry="event")) == len(failing), "the events of the errors")
    traces: dict[str, set[str]] = {}
    for event in [line["event"] for line in probe.lines(sentry="transaction")]:
        traces.setdefault(event["contexts"]["trace"]["trace_id"], set()).add(event["transaction"])
    for way in ways:
        [found] = [names for names in traces.values() if way in names]
        assert len(found) == 2, (way, found)
    frames = [
        frame
        for line in probe.lines(sentry="event")
        for value in line["event"]["exception"]["values"]
        for frame in value["stacktrace"]["frames"]
        if "confidential" in json.dumps(frame.get("vars", {}), default=repr)
    ]
    assert "tracing_probe" in {frame["module"] for frame in frames}
    ours = [frame for frame in frames if frame["module"].startswith("waooaw_celery")]
    assert [(frame["function"], frame["vars"]) for frame in ours] == []
