"""Erasure of a person's data from every place where the system keeps a copy of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.database.sqlite.compaction import compact
from waooaw_celery.ledger.retention.erasure import BLANKED, ErasedRows, erase_rows, held_among
from waooaw_celery.ledger.retention.holds import HoldKind, list_holds
from waooaw_celery.maintenance.erasure_rule import ErasureRule
from waooaw_celery.maintenance.large_payloads import messages_with, purge_payloads
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.results.removal import StoredResults

#: Seconds for which the rows of the spool may take to be in the ledger, from which they are erased.
SPOOL_SECONDS = 10.0
#: Why a file of SQLite still has old contents, and what to do.
_NOT_COMPACTED = "another process uses it, or the disk has no room for a copy. Erase again"
#: What no erasure reaches, whatever it finds.
OUT_OF_REACH = (
    "logs of processes, and what handlers wrote elsewhere",
    "backups and replicas, and files in which the broker and the result backend keep what they have deleted until "
    "they rewrite them (Redis: BGREWRITEAOF and BGSAVE)",
    "spools of other computers: run the command there too",
    "memory of running processes, and chords that have not ended: their results expire after result_expires",
)
#: The same, of a ledger in PostgreSQL.
POSTGRESQL_OUT_OF_REACH = (
    "old versions of rows in PostgreSQL, until VACUUM FULL rewrites waooaw_messages, waooaw_message_events and "
    "waooaw_inbox, and its archived WAL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What an erasure removed, by place, and what it did not reach.

    Attributes:
        rule: the rule that it followed, in words.
        messages: how many messages in the ledger were blanked because the rule matches them. A message that waits
            in the outbox is one of them, and is not published any more.
        copies: how many other messages, because they have the same payload: deliveries of an event, retried dead
            letters.
        answers: how many other messages, because they answer one of these.
        events: how many published events in the event log.
        error_texts: how many error texts in the ledger.
        publish_options: how many publish options, such as the arguments of the next steps of a chain.
        inbox_results: how many results of handlers with ``once=True``.
        workflows: how many workflows that have ended, with their steps.
        dead_letters: how many dead letters.
        results: how many results in the result backend.
        spool_rows: how many rows in the spool of this computer.
        payloads: how many large payloads in their store, with those of purged messages.
        remains: what was not reached, a sentence for each place.
    """

    rule: str
    messages: int = 0
    copies: int = 0
    answers: int = 0
    events: int = 0
    error_texts: int = 0
    publish_options: int = 0
    inbox_results: int = 0
    workflows: int = 0
    dead_letters: int = 0
    results: int = 0
    spool_rows: int = 0
    payloads: int = 0
    remains: tuple[str, ...] = ()


def erase(
    app: AgentApp,
    *,
    agent: str | None = None,
    containing: str | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Erasure:
    """Erase the payloads, results and error texts of an agent's messages, or of those that contain a text.

    Agents, times, statuses and the digests of payloads stay. What is on legal hold stays. If a server fails half
    way, erase again: what was erased before is then searched for again.

    Args:
        app: the application whose ledger, broker and result backend are searched.
        agent: erase all messages that this agent sent or received.
        containing: erase all messages whose payload, as JSON text, contains this text, such as a name, and all
            results, error texts and dead letters that do.
        on_progress: called with the number of messages of the ledger erased so far, and with that of all that are
            to be.

    Returns:
        How much was erased in each place, and what was not reached.

    Raises:
        InvalidMessage: neither or both are given, or this is not a valid agent name.
        AuditUnavailable, BrokerUnavailable, BackendUnavailable: a server does not answer.
        ConfigurationError: there is no ledger.

    Example:
        >>> erasure = erase(app, containing="ada@example.org")
        >>> erasure.messages, erasure.dead_letters, erasure.remains[0]
        (3, 1, 'logs of processes, and what handlers wrote elsewhere')
    """
    app.ledger.flush()
    app.ledger.drain_spool(SPOOL_SECONDS)
    search = ErasureRule(agent=agent, text=containing, ids=frozenset(), caps=app.packer.caps)
    also, unreadable = messages_with(app, search.matches_result) if containing else (set(), 0)
    rows = erase_rows(app.database, agent=agent, containing=containing, also=also, on_progress=on_progress)
    rule = ErasureRule(agent=agent, text=containing, ids=rows.ids, caps=app.packer.caps)
    remains = [*_left_in_ledger(rows)]
    if unreadable:
        remains.append(f"{unreadable} large payloads that cannot be read, and so not searched")
    dead_letters = _erase_dead_letters(app, rule, remains)
    spool_rows = _erase_spool(app, rule, remains)
    results = _erase_results(app, rule, remains)
    payloads = purge_payloads(app)
    _compact(app, remains)
    return Erasure(
        rule=rows.rule,
        **{name: getattr(rows, name) for name in BLANKED},
        dead_letters=dead_letters,
        results=results,
        spool_rows=spool_rows,
        payloads=payloads.objects + payloads.orphans,
        remains=(*remains, *OUT_OF_REACH),
    )


def _left_in_ledger(rows: ErasedRows) -> list[str]:
    left = []
    if rows.held:
        left.append(f"{rows.held} messages on legal hold, with their copies elsewhere")
    if rows.open:
        left.append(
            f"{rows.open} messages that have not ended: the broker or a worker has them. Wait for their end, or "
            "cancel them (`waooaw cancel`), and erase again"
        )
    if rows.open_workflows:
        left.append(
            f"{rows.open_workflows} workflows that have not ended: their steps are needed. Wait for their end, or "
            "cancel them (`waooaw workflow cancel`), and erase again"
        )
    return left


def _erase_dead_letters(app: AgentApp, rule: ErasureRule, remains: list[str]) -> int:
    """Remove dead letters, and return how many."""
    holds = {(hold.kind, hold.value) for hold in list_holds(app.database)}
    found = app.dead_letters.find(rule.matches_dead_letter)
    held = held_among(app.database, [letter.message_id for letter in found if letter.message_id is not None])
    free = [
        letter
        for letter in found
        if letter.message_id not in held
        and (HoldKind.MESSAGE, letter.message_id) not in holds
        and not {(HoldKind.AGENT, letter.agent), (HoldKind.AGENT, letter.from_agent)} & holds
    ]
    count = app.dead_letters.erase(free)
    if count < len(free):
        remains.append(f"{len(free) - count} dead letters that another reader had: erase again")
    if rule.unreadable:
        remains.append(
            f"{len(rule.unreadable)} dead letters that cannot be read, and so not searched: look at them with "
            "`waooaw dead list` and discard them"
        )
    return count


def _erase_results(app: AgentApp, rule: ErasureRule, remains: list[str]) -> int:
    """Remove results from the result backend, and return how many."""
    results = StoredResults(app.backend)
    found: set[str] = set()
    if rule.text is not None:
        found = results.find(rule.matches_result)
        found -= held_among(app.database, found)
        found -= {hold.value for hold in list_holds(app.database) if hold.kind is HoldKind.MESSAGE}
        if not results.is_searchable:
            remains.append(
                "results of other messages: this result backend cannot be searched. Results expire by themselves"
            )
    if not results.is_removable:
        remains.append("results that the result backend rpc:// has sent to callers")
    return results.remove(rule.ids | found)


def _erase_spool(app: AgentApp, rule: ErasureRule, remains: list[str]) -> int:
    """Blank rows of this computer's spool, and return how many.

    A message that the ledger refused is only here. Its facts follow it, and name no agents and no conversation.
    """
    spool = app.ledger.spool
    holds = frozenset((hold.kind, hold.value) for hold in list_holds(app.database))
    held = set(held_among(app.database, spool.message_ids(refused=True)))

    def is_selected(row: LedgerRow) -> bool:
        if row.message_id in held or _is_named(row, holds):
            held.add(row.message_id)
            return False
        matches = rule.matches_row(row)
        if matches and row.kind == "message":
            rule.ids = rule.ids | {row.message_id}
        return matches

    done = spool.erase(is_selected)
    if done.waiting:
        remains.append(f"{done.waiting} messages that wait in the spool {spool.path} for the ledger: erase again")
    if not done.compacted:
        remains.append(f"old contents of the spool {spool.path}: {_NOT_COMPACTED}")
    remains += [f"the damaged spool {file.path}: delete it" for file in spool.damaged()]
    return done.blanked


def _compact(app: AgentApp, remains: list[str]) -> None:
    """Remove old contents from the files of an SQLite ledger."""
    if app.database.is_postgresql:
        remains.append(POSTGRESQL_OUT_OF_REACH)
    elif not compact(app.database):
        remains.append(f"old contents of {app.database.url.database}: {_NOT_COMPACTED}")


def _is_named(row: LedgerRow, holds: Set[tuple[HoldKind, str]]) -> bool:
    """Return whether a hold names a row of the spool: its message, one of its agents, or its conversation."""
    named: set[tuple[HoldKind, Any]] = {(HoldKind.MESSAGE, row.message_id)}
    with suppress(ValueError, AttributeError, RecursionError):  # a damaged row names nothing more
        columns = json.loads(row.text)
        for part in (columns, columns.get("message")):
            if isinstance(part, dict):
                if part.get("message_type") == MessageType.RESPONSE:
                    named.add((HoldKind.MESSAGE, part.get("causation_id")))  # the request that it answers
                named |= {(HoldKind.AGENT, part.get(name)) for name in ("from_agent", "to_agent")}
                named.add((HoldKind.CONVERSATION, part.get("conversation_id")))
    return not named.isdisjoint(holds)
