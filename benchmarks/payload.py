"""The payload of the benchmarks. It imports nothing, so that every competitor can use it."""

from __future__ import annotations

#: About 365 bytes of JSON, as a task for an agent might be.
PAYLOAD = {
    "task_id": "7f9c2ba4-e88f-4a3a-b0a4-2f1d6c1a9e77",
    "kind": "summarise",
    "documents": [f"s3://bucket/team/{number}/document.pdf" for number in range(4)],
    "options": {"language": "en", "max_words": 250, "style": "bullet points", "citations": True},
    "requested_by": {"name": "dashboard", "user": "ada.lovelace", "tenant": "research"},
}
