"""The agent behind the service."""

from __future__ import annotations

from collections.abc import AsyncIterator

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("assistant")
assistant = Agent("assistant", app)


@assistant.method
async def answer(question: str) -> str:
    """Answer a question. A real assistant would await a language model here."""
    if not question.endswith("?"):
        raise ValueError("that is no question")
    return f"It depends. ({question})"


@assistant.method
async def explain(question: str) -> AsyncIterator[str]:
    """Answer a question word by word."""
    for word in f"Let me think about it: {question}".split():
        yield word


@assistant.on(MessageType.COMMAND)
async def learn(message: Message) -> None:
    """Take a document that nobody waits for."""
    if not message.payload["text"]:
        raise ValueError("an empty document teaches nothing")
