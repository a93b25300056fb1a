"""Finds messages by a pattern of topics: the topics that it matches, and the condition on a row."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, true

from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.read.reader import force_index_scans
from waooaw_celery.ledger.read.scan import KeysetScan
from waooaw_celery.messages.topics.patterns import ANY_WORDS, ONE_WORD, matches

#: Most topics in the ledger that are compared with a pattern. With more, the rows are compared.
MAX_KNOWN_TOPICS = 500
#: Most topics that are read along their index: each is a scan of its own.
MAX_TOPICS = 20

#: In PostgreSQL's regular expressions: a word of a topic.
_WORD = "[^.]+"


def has_wildcard(pattern: str) -> bool:
    """Whether a pattern may match more than one topic."""
    return not {ONE_WORD, ANY_WORDS}.isdisjoint(pattern.split("."))


def filter_by_pattern(scan: KeysetScan, connection: Connection, pattern: str) -> None:
    """Restrict a scan to the messages whose topic matches a pattern. Call it after the other filters.

    Args:
        scan: the scan.
        connection: a connection in a transaction.
        pattern: a valid pattern with wildcards.
    """
    force_index_scans(connection)
    is_postgresql = connection.dialect.name == "postgresql"
    condition = partial(_topic_matches, pattern=pattern, is_postgresql=is_postgresql)
    scan.filter_topic(topics_in_ledger(connection, pattern), condition)


def topics_in_ledger(connection: Connection, pattern: str) -> list[str] | None:
    """Return the topics in the ledger that a pattern matches, or None if there are too many to read one by one.

    It jumps along the index from each topic to the next one, and reads no message.

    Args:
        connection: a connection in a transaction.
        pattern: a valid pattern.
    """
    topic = MessageRow.topic
    first = select(topic.label("topic")).where(topic.is_not(None)).order_by(topic).limit(1).subquery()
    known = select(first.c.topic).cte("known", recursive=True)
    following = select(topic).where(topic > known.c.topic).order_by(topic).limit(1).scalar_subquery()
    known = known.union_all(select(following).where(known.c.topic.is_not(None)))
    query = select(known.c.topic).where(known.c.topic.is_not(None)).limit(MAX_KNOWN_TOPICS + 1)
    topics = list(connection.scalars(query))
    found = [each for each in topics if matches(pattern, each)]
    return None if len(topics) > MAX_KNOWN_TOPICS or len(found) > MAX_TOPICS else found


def _topic_matches(message: Any, pattern: str, *, is_postgresql: bool) -> ColumnElement[bool]:
    """Return the condition that the topic of a message, which may be NULL, matches a pattern."""
    if is_postgresql:
        condition: ColumnElement[bool] = message.topic.regexp_match(regular_expression(pattern))
        return condition
    # The engine registers the function: Python's regular expressions would take very long for some patterns.
    return func.waooaw_topic_matches(pattern, message.topic) == true()


def regular_expression(pattern: str) -> str:
    """Return the regular expression of a pattern. PostgreSQL searches it without backtracking.

    Example:
        >>> regular_expression("task.*.#")
        '^task\\\\.[^.]+(\\\\.[^.]+)*$'
    """
    text, separator = "", ""
    words = pattern.split(".")
    for number, word in enumerate(words):
        if word != ANY_WORDS:
            text += separator + (_WORD if word == ONE_WORD else word)
            separator = r"\."
        elif separator:
            text += rf"(\.{_WORD})*"
        elif number < len(words) - 1:
            text += rf"({_WORD}\.)*"
        else:
            text += rf"({_WORD}(\.{_WORD})*)?"
    return f"^{text}$"
