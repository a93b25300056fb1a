"""A client of another world: it knows only A2A, and asks an agent of the demo by an edge."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from dataclasses import dataclass

from waooaw_celery.demo.processes import SYSTEM, Stack
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.validation import JSON
from waooaw_celery.testing.embedded import free_port

#: The agent that the client asks, and the text whose words it counts.
AGENT, SKILL, TEXT = "analyst-1", "words", "An agent of another world asks how many words this sentence has"
#: Seconds that the edge may take to start, and the agent to answer.
START_SECONDS, ANSWER_SECONDS = 30.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideAnswer:
    """What a client of A2A was told, and what the ledger has of it.

    Attributes:
        url: address of the agent's card.
        skills: the skills on the card.
        answer: the answer.
        task_id: id of the task, which is that of the message in the ledger.
        from_agent: in whose name the ledger has the message.
        identity: who the ledger says has sent it.
        status: the status of the message.
    """

    url: str
    skills: list[str]
    answer: JSON
    task_id: str
    from_agent: str
    identity: str | None
    status: str


def ask_from_outside(stack: Stack) -> OutsideAnswer | None:
    """Serve an agent by A2A, and ask it with the client of a2a-sdk. None: the extra [a2a] is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("a2a", "starlette", "uvicorn", "httpx2")):
        return None
    port = free_port()
    stack.start("edge", ["-A", SYSTEM, "waooaw", "serve", "--a2a", f"--agent={AGENT}", f"--port={port}"])

    def answers() -> bool:
        with socket.socket() as client:
            client.settimeout(0.5)
            return client.connect_ex(("127.0.0.1", port)) == 0

    stack.wait_until(answers, "starting the edge", START_SECONDS)
    url = f"http://127.0.0.1:{port}"
    skills, task_id, answer = asyncio.run(asyncio.wait_for(_ask(url), ANSWER_SECONDS))
    trail = MessageAuditTrail(stack.app.ledger)
    # The client has the answer a moment before the ledger has the outcome.
    stack.wait_until(lambda: trail.receipt(task_id).receipt.status.final, "recording the task", ANSWER_SECONDS)
    record = trail.receipt(task_id)
    return OutsideAnswer(
        url=f"{url}/.well-known/agent-card.json",
        skills=skills,
        answer=answer,
        task_id=task_id,
        from_agent=record.receipt.from_agent,
        identity=record.identity,
        status=record.receipt.status.value,
    )


async def _ask(url: str) -> tuple[list[str], str, JSON]:
    """Read the agent's card, ask it, and return its skills, the id of the task, and the answer."""
    # Imported here, because they need the extra.
    import httpx
    from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
    from a2a.helpers import new_text_message
    from a2a.types import SendMessageRequest
    from google.protobuf.json_format import MessageToDict

    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        client = ClientFactory(ClientConfig(streaming=False, httpx_client=http)).create(card)
        message = new_text_message(TEXT)
        message.metadata["skill_id"] = SKILL
        async for event in client.send_message(SendMessageRequest(message=message)):
            task = MessageToDict(event.task)
    [part] = task["artifacts"][0]["parts"]
    answer = part.get("data", part.get("text"))
    if isinstance(answer, float) and answer.is_integer():  # Protobuf has no whole numbers in JSON values
        answer = int(answer)
    return [skill.id for skill in card.skills], task["id"], answer
