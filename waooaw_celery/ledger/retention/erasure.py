"""Erasure in the ledger: blanks payloads, results and error texts, and keeps who, when, what happened, digests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, String, cast, exists, func, null, or_, select, update

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import InboxRow, MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.database.rows import storable
from waooaw_celery.ledger.read.reader import (
    MessageKey,
    column_contains,
    group_by_month,
    in_partition,
    json_spellings,
)
from waooaw_celery.ledger.retention.holds import is_held
from waooaw_celery.ledger.retention.related import Target, related_targets, select_targets
from waooaw_celery.ledger.retention.removal import BATCH_SIZE, Removal, record_removal, removing
from waooaw_celery.ledger.retention.workflows import erase_workflows
from waooaw_celery.ledger.write.statements import close_ended
from waooaw_celery.messages.validation import check_agent_name

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class ErasedRows:
    """What an erasure blanked in the ledger, and what it left.

    Attributes:
        rule: the rule that it followed, in words.
        ids: the ids of all messages without a payload now, also of those that were erased before.
        messages: how many messages were blanked because the rule matches them.
        copies: how many others, because they have the same payload: deliveries of an event, retried dead letters.
        answers: how many others, because they answer one of these messages.
        events: how many published events, in the event log.
        error_texts: how many error texts.
        publish_options: how many publish options, such as the arguments of the next steps of a chain.
        inbox_results: how many results of handlers with ``once=True``.
        workflows: how many workflows, with their steps.
        held: how many messages match and are on legal hold.
        open: how many of these messages have not ended, so that the broker still has them.
        open_workflows: how many workflows match and have not ended.
    """

    rule: str
    ids: set[str] = field(default_factory=set)
    messages: int = 0
    copies: int = 0
    answers: int = 0
    events: int = 0
    error_texts: int = 0
    publish_options: int = 0
    inbox_results: int = 0
    workflows: int = 0
    held: int = 0
    open: int = 0
    open_workflows: int = 0


#: The fields of ErasedRows that count what was blanked, in order.
_OTHERS = ("rule", "ids", "held", "open", "open_workflows")
BLANKED = tuple(each.name for each in fields(ErasedRows) if each.name not in _OTHERS)


def erase_rows(
    database: Database,
    *,
    agent: str | None = None,
    containing: str | None = None,
    also: Collection[str] = (),
    on_progress: Callable[[int, int | None], None] | None = None,
) -> ErasedRows:
    """Erase an agent's messages, or those that contain a text, in the ledger; not those on hold.

    Messages that were erased before are erased again, because a worker may have recorded an error since.

    Args:
        database: the ledger's database.
        agent: erase all messages that this agent sent or received.
        containing: erase all messages whose payload, publish options or event attributes, as JSON text, contain
            this text, in any case, and all error texts and results that contain it.
        also: ids of messages whose large payloads, which are not in the ledger, contain the text.
        on_progress: called with the number of messages blanked so far, and with that of all that are to be.

    Raises:
        InvalidMessage: neither or both are given, or this is not a valid agent name.
        AuditUnavailable: the database does not answer.
    """
    rule, condition = _rule(agent, containing, also)
    erased = ErasedRows(rule=rule)
    with database.begin("read the database's time") as connection:
        at = now_in(connection)
    with removing(database, "erase payloads") as connection:
        close_ended(connection)
        erased.held = connection.scalar(select(func.count()).where(condition, is_held(), _is_whole())) or 0
        targets = _targets(connection, condition, erased)
        blanked = 0
        for batch in _batches(list(targets.values())):
            _blank(connection, [target.key for target in batch], at, erased)
            blanked += len(batch)
            if on_progress is not None:
                on_progress(blanked, len(targets))
        _blank_causes(connection, targets, erased)
        if containing is not None:
            _blank_texts(connection, containing, erased)
        if agent is not None:
            _blank_mentions(connection, agent, erased)
        erased.workflows, erased.open_workflows = erase_workflows(connection, agent, containing)
        erased.ids = set(targets)
    total = erased.messages + erased.copies + erased.answers + erased.events
    removal = Removal(rule=rule, messages=total, events=erased.error_texts, workflows=erased.workflows)
    record_removal(database, removal, at)
    return erased


def held_among(database: Database, message_ids: Collection[str]) -> set[str]:
    """Return which of these messages are on legal hold."""
    with database.begin("look up legal holds") as connection:
        return {id_ for batch in _batches(list(message_ids)) for id_ in _held(connection, batch)}


def _rule(agent: str | None, containing: str | None, also: Collection[str]) -> tuple[str, ColumnElement[bool]]:
    """Return the rule to record, and the condition on messages."""
    if (agent is None) == (not containing):
        raise InvalidMessage("erase takes an agent, or a text that payloads contain")
    if agent is not None:
        rule = f"erase: agent {check_agent_name(agent)}"
        return rule, or_(MessageRow.from_agent == agent, MessageRow.to_agent == agent)
    # The text itself is not recorded: it is what is to be erased.
    columns = (MessageRow.payload, MessageRow.options, MessageRow.event)
    conditions = [column_contains(column, str(containing)) for column in columns]
    contains = or_(*conditions, *([MessageRow.message_id.in_(also)] if also else []))
    return "erase: payloads that contain a given text", contains


def _targets(connection: Connection, condition: ColumnElement[bool], erased: ErasedRows) -> dict[str, Target]:
    """Return the messages to erase by id: those that match, their copies and answers, and those erased before."""
    matching = select_targets(connection, or_(condition, ~_is_whole()), ~is_held())
    targets = {target.message_id: target for target in matching}
    copies, answers = related_targets(connection, targets)
    for found, name in ((matching, "messages"), (copies, "copies"), (answers, "answers")):
        new = [target for target in found if not target.was_erased]
        published = sum(target.is_published_event for target in new)
        erased.events += published
        setattr(erased, name, len(new) - published)
    return targets


def _blank(connection: Connection, keys: Sequence[MessageKey], at: datetime, erased: ErasedRows) -> None:
    """Blank messages, with their errors and results."""
    ids = [message_id for message_id, _ in keys]
    for month in group_by_month(keys):
        here = in_partition(MessageRow, month)
        has_options = select(func.count()).where(here, MessageRow.options.is_not(null()))
        erased.publish_options += connection.scalar(has_options) or 0
        _blank_subjects(connection, here)
        values = {"payload": null(), "options": null(), "erased_at": func.coalesce(MessageRow.erased_at, at)}
        needs_blanking = or_(_is_whole(), MessageRow.options.is_not(null()))
        connection.execute(update(MessageRow).where(here, needs_blanking).values(values))
    _blank_errors(connection, keys, erased)
    results = InboxRow.message_id.in_(ids), InboxRow.result.is_not(null())
    erased.inbox_results += connection.execute(update(InboxRow).where(*results).values(result=null())).rowcount
    is_open = select(func.count()).where(OpenMessageRow.message_id.in_(ids))
    erased.open += connection.scalar(is_open) or 0


def _blank_subjects(connection: Connection, condition: ColumnElement[bool]) -> None:
    """Remove the subjects of events: what an event is about may be a person."""
    query = select(MessageRow.message_id, MessageRow.retain_until, MessageRow.event).where(condition)
    for message_id, retain_until, event in connection.execute(query.where(MessageRow.event.is_not(null()))).all():
        if event and "subject" in event:
            rest = {name: value for name, value in event.items() if name != "subject"}
            key = MessageRow.message_id == message_id, MessageRow.retain_until == retain_until
            connection.execute(update(MessageRow).where(*key).values(event=rest))


def _blank_errors(
    connection: Connection, keys: Sequence[MessageKey], erased: ErasedRows, *conditions: ColumnElement[bool]
) -> None:
    for month in group_by_month(keys):
        here = in_partition(MessageEventRow, month), MessageEventRow.error.is_not(None), *conditions
        erased.error_texts += connection.execute(update(MessageEventRow).where(*here).values(error=None)).rowcount


def _blank_causes(connection: Connection, targets: dict[str, Target], erased: ErasedRows) -> None:
    """Blank the errors of messages whose handlers sent an erased message: they quote the error of its answer."""
    causes = {target.causation_id for target in targets.values() if target.causation_id} - set(targets)
    for batch in _batches(sorted(causes)):
        _blank_errors(connection, _keys(connection, MessageRow.message_id.in_(batch), ~is_held()), erased)


def _blank_texts(connection: Connection, text: str, erased: ErasedRows) -> None:
    """Blank the errors and the results that contain a text, of any message."""
    spellings = dict.fromkeys((text, *json_spellings(text)))  # an error may quote a payload as JSON
    quotes = or_(*(MessageEventRow.error.icontains(storable(spelling), autoescape=True) for spelling in spellings))
    for batch in _batches(list(connection.scalars(select(MessageEventRow.message_id).where(quotes).distinct()))):
        keys = _keys(connection, MessageRow.message_id.in_(batch), ~is_held())
        _blank_errors(connection, keys, erased, quotes)
    contains = column_contains(InboxRow.result, text)
    for batch in _batches(list(connection.scalars(select(InboxRow.message_id).where(contains)))):
        ids = set(batch) - _held(connection, batch)
        statement = update(InboxRow).where(InboxRow.message_id.in_(ids)).values(result=null())
        erased.inbox_results += connection.execute(statement).rowcount


def _blank_mentions(connection: Connection, agent: str, erased: ErasedRows) -> None:
    """Blank the publish options of other messages that name tasks of an agent, with their arguments."""
    names_task = cast(MessageRow.options, String).contains(f'"{agent}.', autoescape=True)
    mentions = names_task, _is_whole(), ~is_held()
    is_open = exists().where(OpenMessageRow.message_id == MessageRow.message_id)
    erased.open += connection.scalar(select(func.count()).where(*mentions, is_open)) or 0
    for batch in _batches(_keys(connection, *mentions, ~is_open)):
        for month in group_by_month(batch):
            statement = update(MessageRow).where(in_partition(MessageRow, month)).values(options=null())
            erased.publish_options += connection.execute(statement).rowcount


def _keys(connection: Connection, *conditions: ColumnElement[bool]) -> list[MessageKey]:
    query = select(MessageRow.message_id, MessageRow.retain_until).where(*conditions)
    return [(message_id, retain_until) for message_id, retain_until in connection.execute(query)]


def _held(connection: Connection, ids: Collection[str]) -> set[str]:
    return set(connection.scalars(select(MessageRow.message_id).where(MessageRow.message_id.in_(ids), is_held())))


def _is_whole() -> ColumnElement[bool]:
    """Whether a message was not erased."""
    is_whole: ColumnElement[bool] = MessageRow.erased_at.is_(None)
    return is_whole


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]
