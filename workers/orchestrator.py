"""Hands the documents of a folder to the analysts, and knows how far they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from waooaw_celery import Agent, Message, MessageType, Priority, create_app

SUFFIXES = frozenset({".txt", ".md", ".rst", ".py"})
#: Largest document, in bytes: it travels whole in a message.
MAX_BYTES = 256 * 1024
#: Folders that hold no documents of the reader's own.
SKIPPED_FOLDERS = frozenset({"node_modules", "build", "dist", "__pycache__"})

app = create_app("orchestrator")
agent = Agent("orchestrator", app)

_sent: set[str] = set()
_done: set[str] = set()
_skipped: dict[str, str] = {}
_urgent: str | None = None


@agent.on(MessageType.COMMAND)
def analyse(message: Message) -> None:
    """Send every document below ``paths`` to an analyst; the last, the README, is URGENT and overtakes."""
    global _urgent
    documents = dict(_documents([Path(path) for path in message.payload["paths"]]))
    analysts = [record.name for record in app.registry.all() if record.name.startswith("analyst")]
    order = sorted(documents, key=_readme_last)
    for number, name in enumerate(order):
        urgent = number == len(order) - 1
        agent.send(
            analysts[number % len(analysts)],
            {"path": name, "text": documents[name]},
            priority=Priority.URGENT if urgent else Priority.LOW,
            ttl_seconds=None,  # however long the queue is
        )
        _sent.add(name)
    _urgent = order[-1] if order else ""


@agent.on(MessageType.ACK)
def measured(message: Message) -> None:
    """Note that an analyst has measured a document."""
    _done.add(message.payload["path"])


@agent.method
def progress() -> dict[str, object]:
    """Tell how far the work is; ``total`` is None while the documents are still being sent."""
    return {
        "total": None if _urgent is None else len(_sent),
        "done": len(_done),
        "urgent": _urgent,
        "skipped": _skipped,
    }


@agent.method
def get_status() -> dict[str, object]:
    """Tell what this agent is doing."""
    return {"sent": len(_sent), "measured": len(_done)}


def _documents(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each document; what cannot be read or is too large is noted with the reason."""
    for root in paths:
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for path in files:
            inside = path.relative_to(root) if root.is_dir() else Path(path.name)
            if not path.is_file() or path.suffix not in SUFFIXES or _hidden(inside):
                continue
            if path.stat().st_size > MAX_BYTES:
                _skipped[str(inside)] = f"larger than {MAX_BYTES // 1024} KiB"
                continue
            try:
                yield str(inside), path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                _skipped[str(inside)] = str(error)


def _readme_last(name: str) -> tuple[bool, int, str]:
    path = Path(name)
    return path.stem.lower() == "readme", -len(path.parts), name


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in SKIPPED_FOLDERS for part in path.parts)
