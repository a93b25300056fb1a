"""The sentence that tells a sender that its recipient's workers write to another ledger."""

from __future__ import annotations

from collections.abc import Mapping

from waooaw_celery.messages.wording import ledger_name

#: Workers that the sentence names.
_SHOWN = 3


def mismatch(agent: str, ledgers: Mapping[str, str | None], own: str | None) -> str:
    """Return a sentence: workers of an agent write to another ledger than the process that sends to it.

    Args:
        agent: name of the agent.
        ledgers: the id of each living worker's ledger, by node name.
        own: the id of the ledger of the process that sends, or None.
    """
    others = sorted((worker, ledger) for worker, ledger in ledgers.items() if ledger != own)
    shown = "; ".join(f"{worker} writes to {ledger_name(ledger)}" for worker, ledger in others[:_SHOWN])
    effect = (
        "that ledger has no message of this process before a worker begins it"
        if own is None
        else "such a worker leaves the messages of this process in the queue"
    )
    return (
        f"this process writes to {ledger_name(own)}, but agent {agent!r} does not: {shown}; {effect}. "
        "Set the same waooaw_database_url (or WAOOAW_DATABASE_URL) for all processes"
    )
