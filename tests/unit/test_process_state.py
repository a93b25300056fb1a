"""An application leaves alone what belongs to the whole process, and so to the other applications in it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass

import pytest
from celery import Celery, signals

from waooaw_celery import create_app
from waooaw_celery.worker.execution.event_loop import close_event_loop, handler_event_loop
from waooaw_celery.worker.health.progress import Progress


@dataclass(eq=False)
class Worker:
    """What Celery's signals have as their sender."""

    app: Celery


_COMPARE = """
import asyncio, copy, logging, os, signal, socket, sys, threading, warnings
import celery.app.backends, celery.apps.worker, celery.concurrency, celery.signals
from kombu import compression, serialization, transport
from kombu.serialization import registry
from kombu.utils import json as kombu_json


def state():
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("celery", "kombu", "amqp", "redis"))]
    signals = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
    return {
        "serializers": (dict(registry._encoders), dict(registry._decoders), dict(registry.name_to_type)),
        "accepted": (registry._disabled_content_types.copy(), registry._default_encode),
        "types of JSON": (dict(kombu_json._encoders), dict(kombu_json._decoders)),
        "codecs": (dict(compression._encoders), dict(compression._decoders), dict(compression._aliases)),
        "transports": {name: transport.TRANSPORT_ALIASES[name] for name in known_transports},
        "backends": dict(celery.app.backends.BACKEND_ALIASES),
        "pools": dict(celery.concurrency.ALIASES),
        "environment": dict(os.environ),
        "loggers": [(each.level, each.handlers[:], each.filters[:], each.disabled) for each in loggers],
        "logging": (logging.getLoggerClass(), logging.getLogRecordFactory(), logging.raiseExceptions),
        "signals": [signal.getsignal(number) for number in signals],
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.getrecursionlimit()),
        "asyncio": type(asyncio.get_event_loop_policy()),
        "sockets": socket.getdefaulttimeout(),
        "warnings": warnings.filters[:],
    }


known_transports = list(transport.TRANSPORT_ALIASES)
before = state()
from waooaw_celery import Agent, create_app

app = create_app(broker_url="redis://127.0.0.1:1/0", waooaw_max_nodes=10)
agent = Agent("guest", app)
agent.method(print)
app.packer, app.amqp.queues, app.backend, app.connection_for_read(), app.connection_for_write()
app.finalize()
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, {name: (before[name], after[name]) for name in changed}
"""


def test_an_application_changes_no_registry_of_the_process() -> None:
    """Formats, codecs, transports, backends, loggers, signal handlers and variables are as before."""
    subprocess.run([sys.executable, "-c", _COMPARE], check=True, timeout=60)


def test_the_end_of_another_applications_worker_does_not_end_ours() -> None:
    """Celery tells all applications of the process; ours goes on until its own worker ends."""
    app, other = create_app(broker_url="redis://127.0.0.1:1/0"), Celery("other", set_as_current=False)
    with closing(app):
        loop = handler_event_loop()
        try:
            signals.worker_shutdown.send(sender=Worker(app=other))
            assert handler_event_loop() is loop
            signals.worker_shutdown.send(sender=Worker(app=app))
            assert handler_event_loop() is not loop
        finally:
            close_event_loop()


@pytest.mark.parametrize("signal", [signals.task_received, signals.task_revoked, signals.task_rejected])
def test_a_worker_does_not_count_the_messages_of_another_applications_worker(signal: signals.Signal) -> None:
    """Its watchdog would take them for progress."""
    app, other = Celery("ours", set_as_current=False), Celery("other", set_as_current=False)
    progress = Progress(Worker(app=app), 0)
    try:
        signal.send(sender=Worker(app=other))
        assert progress._claimed == 0
        signal.send(sender=Worker(app=app))
        assert progress._claimed == 1
    finally:
        progress.close()
