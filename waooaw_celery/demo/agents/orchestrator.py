"""The orchestrator sends the documents of a folder to the analysts, and tracks the progress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from waooaw_celery import Agent, Message, MessageType, Priority, create_app
from waooaw_celery.demo.agents.report import report

SUFFIXES = frozenset({".txt", ".md", ".rst", ".py"})
#: Largest document in bytes: a document travels whole in one message.
MAX_BYTES = 256 * 1024
#: Folders that hold no documents of yours: installed packages and what a build writes.
SKIPPED_FOLDERS = frozenset({"node_modules", "site-packages", "venv", "build", "dist", "__pycache__"})
SKIPPED_FOLDER_SUFFIXES = frozenset({".egg-info", ".dist-info"})

#: The agents that can measure a document, each in its turn. Which ones there are, the registry knows.
ANALYSTS = "capability:measure?policy=round_robin"

app = create_app("orchestrator")
agent = Agent("orchestrator", app)
agent.workflow(report)

_sent: set[str] = set()
_measured: set[str] = set()
_skipped: dict[str, str] = {}
_urgent: str | None = None


@agent.on(MessageType.COMMAND)
def analyse(message: Message) -> None:
    """Send every document below ``paths`` to an analyst as LOW; the last one, the README, is sent as URGENT."""
    global _urgent
    documents = dict(_documents([Path(path) for path in message.payload["paths"]]))
    order = sorted(documents, key=_readme_last)
    for number, name in enumerate(order):
        urgent = number == len(order) - 1
        agent.send(
            ANALYSTS,
            {"path": name, "text": documents[name]},
            priority=Priority.URGENT if urgent else Priority.LOW,
            ttl_seconds=None,  # however long the queue is
        )
        _sent.add(name)
    _urgent = order[-1] if order else ""


@agent.on(MessageType.ACK)
def measured(message: Message) -> None:
    """Note that an analyst has measured a document."""
    _measured.add(message.payload["path"])


@agent.method
def progress() -> dict[str, object]:
    """Return how far the work is; ``total`` is None while documents are still being sent."""
    return {
        "total": None if _urgent is None else len(_sent),
        "done": len(_measured),
        "urgent": _urgent,
        "skipped": _skipped,
    }


@agent.method
def get_status() -> dict[str, object]:
    """Return how many documents were sent to analysts, and how many they have measured."""
    return {"sent": len(_sent), "measured": len(_measured)}


def _documents(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each document; note why a document is skipped."""
    for root in paths:
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for path in files:
            inside = path.relative_to(root) if root.is_dir() else Path(path.name)
            if not path.is_file() or path.suffix not in SUFFIXES or _is_ignored(inside):
                continue
            if path.stat().st_size > MAX_BYTES:
                _skipped[str(inside)] = f"larger than {MAX_BYTES // 1024} KiB"
                continue
            try:
                yield str(inside), path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                _skipped[str(inside)] = str(error)


def _readme_last(name: str) -> tuple[bool, int, str]:
    """Return a sort key that puts the README of the top folder last."""
    path = Path(name)
    return path.stem.lower() == "readme", -len(path.parts), name


def _is_ignored(path: Path) -> bool:
    return any(
        part.startswith(".") or part in SKIPPED_FOLDERS or Path(part).suffix in SKIPPED_FOLDER_SUFFIXES
        for part in path.parts
    )
