"""Submits a file to the pipeline: ``python submit.py FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import app, packed

from waooaw_celery import Message, MessageBus

if __name__ == "__main__":
    path = Path(sys.argv[1])
    document = {"name": path.name, "content": packed(path.read_text())}
    receipt = MessageBus(app).send(Message(from_agent="submit", to_agent="reader", payload=document))
    print(receipt.message_id)
