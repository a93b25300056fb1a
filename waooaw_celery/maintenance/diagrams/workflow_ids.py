"""Which messages of a conversation start workflows: the ledger alone cannot tell them from requests."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.workflow_models import WorkflowRow

#: Most conversations that one query asks for.
_BATCH_SIZE = 500


def workflow_ids(database: Database, conversation_ids: Iterable[str]) -> frozenset[str]:
    """Return the ids of the workflows of conversations; the id of a workflow is that of its first message.

    Args:
        database: the ledger's database, such as ``app.database``.
        conversation_ids: the ids of the conversations.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    asked, found = sorted(set(conversation_ids)), set[str]()
    with database.begin("read the workflows of a conversation") as connection:
        for start in range(0, len(asked), _BATCH_SIZE):
            batch = asked[start : start + _BATCH_SIZE]
            query = select(WorkflowRow.workflow_id).where(WorkflowRow.conversation_id.in_(batch))
            found.update(connection.scalars(query))
    return frozenset(found)
