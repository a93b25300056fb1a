"""Webhooks: a real worker posts events to a real receiver, which takes them, refuses them, or does not answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from support import Broker, until

from waooaw_celery import AgentApp
from waooaw_celery.agents import EventBus
from waooaw_celery.edges import verify_webhook
from waooaw_celery.errors import NotPermitted
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.testing.embedded import valkey

SECRET, NEXT_SECRET = "whsec_" + "c2VjcmV0" * 4, "whsec_" + "bmV4dCBv" * 4  # gitleaks:allow


@dataclass(frozen=True)
class Got:
    """A request that the receiver got."""

    at: float
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        """Its event, as the cloudevents package reads it."""
        return from_http_event(HTTPMessage(headers=self.headers, body=self.body))


class Receiver(ThreadingHTTPServer):
    """Receives webhooks. The last part of the path says what it answers, and ``got`` has what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: dict[str, list[Got]] = defaultdict(list)
        self.released = threading.Event()

    def url(self, answer: str) -> str:
        """Return a URL, and how it is answered."""
        return f"http://127.0.0.1:{self.server_address[1]}/{answer}?token=in-the-url"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        answer = self.path.partition("?")[0].strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got[answer].append(Got(time.monotonic(), headers, body))
        count = len(self.server.got[answer])
        if answer == "slow":
            self.server.released.wait(30)
        status = {"gone": 410, "redirect": 302, "wrong": 400, "down": 500}.get(answer, 204)
        if answer in ("flaky", "later") and count < 2:
            status = 503
        self.send_response(status)
        if answer == "later":
            self.send_header("Retry-After", "1")
        if status == 302:
            self.send_header("Location", self.server.url("taken"))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        pass


@dataclass
class Hooks:
    """What the tests know."""

    app: AgentApp
    agent: str
    receiver: Receiver
    log: Path
    bus: EventBus = field(init=False)

    def __post_init__(self) -> None:
        self.bus = EventBus(self.app)

    def publish(self, name: str, **event: Any) -> str:
        """Publish an event for one of the webhooks, and return the id of its message."""
        published = self.bus.publish(f"{name}.happened", event or {"n": 1}, from_agent="shop")
        [receipt] = published.receipts.values()
        return receipt.message_id

    def ended(self, message_id: str) -> Any:
        """Wait for the end of a message, and return its receipt."""
        until(lambda: self.app.receipts.get(message_id).status.final, "the end of a webhook")
        return self.app.receipts.get(message_id)


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hooks]:
    folder = tmp_path_factory.mktemp("webhooks")
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, daemon=True)
    thread.start()
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        closed = silent.getsockname()[1]
    answers = ("taken", "binary", "flaky", "later", "gone", "redirect", "wrong", "down", "slow")
    options: dict[str, Any] = {
        name: {"topic": f"{name}.*", "url": receiver.url(name), "secret": SECRET} for name in answers
    }
    options["binary"]["binary"] = True
    options["slow"]["timeout"] = 0.3
    options["taken"] |= {"secret": None, "secret_variable": "SHOP_SECRETS"}
    options["unset"] = {"topic": "unset.*", "url": receiver.url("unset"), "secret_variable": "NO_SUCH_SECRET"}
    options["inner"] = {"topic": "inner.*", "url": receiver.url("inner"), "secret": SECRET, "networks": []}
    options["closed"] = {"topic": "closed.*", "url": f"http://localhost:{closed}/", "secret": SECRET}
    env = {"PROBE_HOOKS": json.dumps(options), "SHOP_SECRETS": f"{SECRET} {NEXT_SECRET}"}
    try:
        with valkey() as url:
            broker = Broker(url, url, folder, f"sqlite:///{folder / 'ledger.db'}")
            with closing(broker.app()) as app:
                schema.upgrade(app.database)
                name = broker.name()
                with broker.running(name, app, module="webhook_probe", env=env):
                    yield Hooks(app, name, receiver, folder / f"{name}.log")
            broker.clean()
    finally:
        receiver.released.set()
        receiver.shutdown()
        receiver.server_close()
        thread.join(10)


def test_an_event_is_posted_with_a_signature(hooks: Hooks) -> None:
    """The cloudevents package reads it; it verifies with both secrets, and with no other."""
    data = {"order": uuid4().hex, "who": "Zoë"}
    message_id = hooks.publish("taken", **data)
    assert hooks.ended(message_id).status is MessageStatus.HANDLED
    [got] = hooks.receiver.got["taken"]
    assert got.headers["content-type"].startswith("application/cloudevents+json")
    assert (got.event.get_data(), got.event.get_type()) == (data, "taken.happened")
    assert got.event.get_source() == "shop"
    assert got.headers["webhook-id"] == message_id
    for secret in (SECRET, NEXT_SECRET):
        verify_webhook(secret, got.headers, got.body)
    with pytest.raises(NotPermitted, match="signature is wrong"):
        verify_webhook("whsec_" + "b3RoZXJz" * 4, got.headers, got.body)
    with pytest.raises(NotPermitted, match="signature is wrong"):
        verify_webhook(SECRET, got.headers, got.body + b" ")


def test_an_event_may_be_posted_in_binary_mode(hooks: Hooks) -> None:
    """Its attributes are headers, and its data is the body; the signature covers the data."""
    data = {"order": uuid4().hex}
    hooks.ended(hooks.publish("binary", **data))
    [got] = hooks.receiver.got["binary"]
    assert json.loads(got.body) == data
    assert (got.event.get_data(), got.event.get_type()) == (data, "binary.happened")
    verify_webhook(SECRET, got.headers, got.body)


def test_an_event_is_retried(hooks: Hooks) -> None:
    """With the same id, and signed anew; the receiver may say after which time."""
    for name, pause in (("flaky", 0.0), ("later", 1.0)):
        receipt = hooks.ended(hooks.publish(name))
        assert (receipt.status, receipt.attempts) == (MessageStatus.HANDLED, 2), receipt.error
        first, second = hooks.receiver.got[name]
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert second.at - first.at >= pause
        verify_webhook(SECRET, second.headers, second.body)


@pytest.mark.parametrize(
    ("name", "attempts", "why"),
    [
        ("gone", 1, "refused the event with 410"),
        ("wrong", 1, "refused the event with 400"),
        ("redirect", 1, "302, which is not followed"),
        ("down", 3, "answered 500"),
        ("slow", 3, "did not answer within 0.3 s"),
        ("closed", 3, "localhost cannot be reached"),
        ("inner", 1, "an address of an inner network"),
        ("unset", 1, "set NO_SUCH_SECRET"),
    ],
)
def test_an_event_that_is_not_taken_becomes_a_dead_letter(
    hooks: Hooks, name: str, attempts: int, why: str
) -> None:
    """Only what may change is tried again; nothing tells the secret, or the rest of the URL."""
    message_id = hooks.publish(name)
    receipt = hooks.ended(message_id)
    assert (receipt.status, receipt.attempts) == (MessageStatus.FAILED, attempts), receipt.error
    assert why in receipt.error
    assert len(hooks.receiver.got[name]) == (0 if name in ("closed", "inner", "unset") else attempts)
    until(lambda: any(each.message_id == message_id for each in hooks.app.dead_letters.list()), "the dead letter")
    told = hooks.log.read_text() + receipt.error
    assert SECRET.removeprefix("whsec_") not in told
    assert "in-the-url" not in told
    assert not hooks.receiver.got["followed"]
