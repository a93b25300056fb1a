"""Which messages of a conversation start workflows: the ledger alone cannot tell them from requests."""

from __future__ import annotations

from sqlalchemy import select

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.workflow_models import WorkflowRow


def workflow_ids(database: Database, conversation_id: str) -> frozenset[str]:
    """Return the ids of the workflows of a conversation; the id of a workflow is that of its first message.

    Args:
        database: the ledger's database, such as ``app.database``.
        conversation_id: the id of the conversation.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    query = select(WorkflowRow.workflow_id).where(WorkflowRow.conversation_id == conversation_id)
    with database.begin("read the workflows of a conversation") as connection:
        return frozenset(connection.scalars(query))
