"""The archivist stores the analysts' reports: in memory, and in the file that ``ARCHIVE`` names, if it is set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("archivist")
agent = Agent("archivist", app)

_file = Path(os.environ["ARCHIVE"]) if "ARCHIVE" in os.environ else None


def _load() -> dict[str, dict[str, object]]:
    lines = _file.read_text(encoding="utf-8").splitlines() if _file and _file.exists() else []
    return {report["path"]: report for report in map(json.loads, lines)}


_reports = _load()
#: The words of each report that was filed, by its title.
_filed: dict[str, int] = {}


@agent.on(MessageType.COMMAND)
def store(message: Message) -> None:
    """Store a report; it replaces an older report of the same document."""
    report = message.payload
    if _file is not None:
        with _file.open("a", encoding="utf-8") as archive:
            archive.write(json.dumps(report) + "\n")
    _reports[report["path"]] = report


@agent.method
def results() -> Iterator[dict[str, object]]:
    """Yield all reports, sorted by path: the caller gets each one while the next is looked up."""
    for path in sorted(_reports):
        yield _reports[path]


@agent.method
def file(title: str, words: int) -> None:
    """File a report on several documents."""
    _filed[title] = words


@agent.method
def withdraw(title: str) -> None:
    """Remove a report on several documents."""
    _filed.pop(title, None)


@agent.method
def filed() -> list[str]:
    """Return the titles of the reports on several documents."""
    return sorted(_filed)


@agent.method
def get_status() -> dict[str, object]:
    """Return how many reports are stored."""
    return {"stored": len(_reports)}
