"""Submits a document: ``python submit.py FILE``; without FILE, an example of two megabytes."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import app, example, packed

from waooaw_celery import Message, MessageBus

if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    name, text = (path.name, path.read_text()) if path else ("example.txt", example())
    document = {"name": name, "content": packed(text)}
    receipt = MessageBus(app).send(Message(from_agent="submit", to_agent="reader", payload=document))
    print(f"{name} is on its way: {receipt.message_id}")
