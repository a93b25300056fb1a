"""An outside agent of A2A as an agent of ours: a sample agent of a2a-sdk, a real worker, a real ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from a2a.utils.signing import create_agent_card_signer
from a2a_sample import SampleAgent, sample_app
from a2a_servers import served
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import Broker, until

from waooaw_celery import AgentApp
from waooaw_celery.agents import RequestResponseHandler
from waooaw_celery.errors import RemoteError, RequestError, RequestTimeout
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.testing.embedded import valkey

KEY = ec.generate_private_key(ec.SECP256R1())
PRIVATE = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
sign: Callable[[Any], Any] = create_agent_card_signer(
    PRIVATE, {"kid": "k1", "alg": "ES256", "jku": None, "typ": "JOSE"}
)
KEYS = {"keys": {"k1": PUBLIC.decode()}}
#: Cards that lie, with what the error says, and the options with which they are used.
LIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "-inner": ("/lies/inner.json", "inner network", {}),
    "-huge": ("/lies/huge.json", "more than 1048576 bytes", {}),
    "-redirect": ("/lies/redirect.json", "the answer was 307", {}),
    "-empty": ("/lies/empty.json", "names no interface", {}),
    "-list": ("/lies/list.json", "no agent card", {}),
    "-nowhere": ("/nowhere.json", "the answer was 404", {}),
    "-changed": ("/lies/changed.json", "not signed", KEYS),
    "-unsigned": ("/plain.json", "not signed", KEYS),
    "-far": ("", "inner network", {"networks": ["10.1.0.0/16"]}),
}


@dataclass
class Outside:
    """An outside agent, and the world in which it is one of ours."""

    broker: Broker
    app: AgentApp
    url: str
    sample: SampleAgent

    @contextmanager
    def ours(self, **cards: dict[str, Any]) -> Iterator[str]:
        """Run a worker of outside agents, with the options of each, and yield the beginning of their names."""
        name = self.broker.name()
        cards = {ending: {**each, "card": f"{self.url}{each.get('card', '')}"} for ending, each in cards.items()}
        variables = {"PROBE_CARDS": json.dumps({"": {"card": self.url, **KEYS}, **cards})}
        self.broker.names |= {f"{name}{ending}" for ending in cards}
        with self.broker.running(name, self.app, "-c", "4", module="a2a_probe", env=variables):
            yield name

    def request(self, name: str, method: str, arguments: dict[str, Any], timeout: float = 30.0) -> Any:
        """Request a method of an agent."""
        return RequestResponseHandler(self.app).request(name, method, arguments, timeout=timeout)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder: Path = tmp_path_factory.mktemp("remote")
    sample = SampleAgent()
    with valkey() as url, served(lambda own: sample_app(own, sample, sign)) as sample_url:
        broker = Broker(url, url, folder, f"sqlite:///{folder / 'ledger.db'}")
        app = broker.app()
        schema.upgrade(app.database)
        try:
            yield Outside(broker, app, sample_url, sample)
        finally:
            app.close()
            broker.clean()


@pytest.fixture(scope="module")
def agent(outside: Outside) -> Iterator[str]:
    cards = {ending: {"card": card, **options} for ending, (card, _, options) in LIES.items()}
    with outside.ours(**{"-plain": {"card": "/plain.json"}, **cards}) as name:
        yield name


def test_a_request_reaches_the_outside_agent(outside: Outside, agent: str) -> None:
    """A skill is a method; the message has our ids, and the ledger has the request. Its card is signed."""
    result = outside.request(agent, "forecast", {"city": "Turin"})
    assert result == {"city": "Turin", "degrees": 21}
    message = outside.sample.messages[-1]
    record = MessageAuditTrail(outside.app.ledger).receipt(message.message_id)
    assert (record.receipt.to_agent, record.receipt.handler) == (agent, "forecast")
    assert message.context_id == record.conversation_id


def test_any_skill_can_be_called_and_a_text_sent(outside: Outside, agent: str) -> None:
    """Without a declaration of the skill; a task's texts are one text, and a mere message is an answer too."""
    assert outside.request(agent, "call", {"skill": "forecast", "arguments": {"city": "Pisa"}})["city"] == "Pisa"
    assert outside.request(agent, "send_message", {"text": "tide"}) == "tide-0 tide-1 tide-2 "
    assert outside.request(agent, "send_message", {"text": "just a message"}) == "hello"


def test_an_answer_is_streamed(outside: Outside, agent: str) -> None:
    """Each part of the outside agent's artifact is a part of ours."""
    handler = RequestResponseHandler(outside.app)
    with handler.stream(agent, "stream_message", {"text": "tide"}, timeout=30.0) as stream:
        assert list(stream) == ["tide-0 ", "tide-1 ", "tide-2 "]


def test_a_failure_has_the_words_of_the_outside_agent(outside: Outside, agent: str) -> None:
    """Also of one that asks a question, which a request cannot answer."""
    with pytest.raises(RemoteError, match="no such city"):
        outside.request(agent, "send_message", {"text": "fail"})
    with pytest.raises(RemoteError, match="which city"):
        outside.request(agent, "send_message", {"text": "ask"})


def test_a_deadline_ends_the_call_and_cancels_the_outside_task(outside: Outside, agent: str) -> None:
    """The caller gets its timeout, and the outside agent is told."""
    before = len(outside.sample.cancelled)
    with pytest.raises(RequestTimeout):
        outside.request(agent, "think_hard", {}, timeout=1.5)
    until(lambda: len(outside.sample.cancelled) > before, "the cancellation of the outside task")


def test_cancelling_our_request_cancels_the_outside_task(outside: Outside, agent: str) -> None:
    """A stream that is closed early cancels its handler, which cancels the task."""
    before = len(outside.sample.cancelled), len(outside.sample.messages)
    handler = RequestResponseHandler(outside.app)
    with handler.stream(agent, "stream_message", {"text": "hang"}, timeout=30.0):
        until(lambda: len(outside.sample.messages) > before[1], "the arrival of the message")
    until(lambda: len(outside.sample.cancelled) > before[0], "the cancellation of the outside task")


def test_an_agent_that_does_not_stream_is_called_too(outside: Outside, agent: str) -> None:
    """Its task is returned whole, and one that is not done is looked at until it is."""
    name = f"{agent}-plain"
    assert outside.request(name, "send_message", {"text": "tide"}) == "tide-0 tide-1 tide-2 "
    handler = RequestResponseHandler(outside.app)
    with handler.stream(name, "stream_message", {"text": "tide"}, timeout=30.0) as stream:
        assert "".join(stream) == "tide-0 tide-1 tide-2 "


@pytest.mark.parametrize("ending", LIES)
def test_a_card_that_lies_is_refused(outside: Outside, agent: str, ending: str) -> None:
    """The error says what is wrong with it, and nothing hangs."""
    with pytest.raises(RequestError, match=LIES[ending][1]):
        outside.request(f"{agent}{ending}", "send_message", {"text": "hi"})
