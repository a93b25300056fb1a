"""The pipeline: large documents go from agent to agent. No agent knows how they travel."""

from __future__ import annotations

import base64
import gzip
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import celeryconfig

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import RetryPolicy

app = create_app("document_pipeline")
app.config_from_object(celeryconfig)

reader = Agent("reader", app)
indexer = Agent("indexer", app)
archivist = Agent("archivist", app)


def shelf() -> Path:
    """Return the folder of the archivist, which ``ARCHIVE_FOLDER`` names."""
    return Path(os.environ.get("ARCHIVE_FOLDER", "archive"))


class Unreadable(ValueError):
    """The document is damaged: another attempt would not help."""


@reader.on(MessageType.COMMAND, retries=RetryPolicy(attempts=5, first_delay=2, never=(Unreadable,)))
def read(message: Message) -> None:
    """Unpack a document, ``{"name", "content"}`` with gzip in base64, and hand its text on.

    The reader keeps nothing. Each of the two messages has the text.
    """
    name = message.payload["name"]
    try:
        text = gzip.decompress(base64.b64decode(message.payload["content"], validate=True)).decode()
    except (OSError, EOFError, ValueError) as error:
        raise Unreadable(f"{name} cannot be read: {error}") from error
    document = {"name": name, "text": text}
    reader.send("indexer", document)
    reader.send("archivist", document)


@indexer.on(MessageType.COMMAND, retries=RetryPolicy(attempts=5, first_delay=2))
def index(message: Message) -> None:
    """Count the words, and tell everybody which are the most frequent."""
    words = Counter(message.payload["text"].lower().split())
    top = [word for word, _ in words.most_common(3)]
    indexer.publish("document.indexed", {"name": message.payload["name"], "words": words.total(), "top": top})


@archivist.on(MessageType.COMMAND)
def archive(message: Message) -> None:
    """Keep a document."""
    shelf().mkdir(exist_ok=True)
    (shelf() / Path(message.payload["name"]).name).write_text(message.payload["text"])


@archivist.method
def find(name: str) -> dict[str, Any]:
    """Return what is known about a document."""
    kept = shelf() / Path(name).name
    return {"name": name, "bytes": kept.stat().st_size if kept.exists() else None}


def packed(text: str) -> str:
    """Return a text as the reader takes it."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def example() -> str:
    """Return a text of 400,000 words and more than two megabytes, which is always the same."""
    choice = random.Random(7)  # noqa: S311 - nothing here is secret
    return " ".join(f"{choice.randrange(200_000):x}" for _ in range(400_000))
