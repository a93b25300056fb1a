"""The id of a ledger, by which processes know whether they write to the same one."""

from __future__ import annotations

from sqlalchemy import select

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import IdentityRow


def ledger_id(database: Database) -> str:
    """Return the id of a ledger. ``waooaw db upgrade`` chose it at random when it created the tables.

    A URL cannot serve as the id: two processes may reach one database under different names.

    Args:
        database: the ledger's database.

    Raises:
        AuditUnavailable: the database does not answer, or has no ledger.
        ConfigurationError: somebody deleted the row.
    """
    with database.begin("read the id of the ledger") as connection:
        found: str | None = connection.scalar(select(IdentityRow.id))
    if found is None:
        raise ConfigurationError(
            "the ledger has no id: its table waooaw_identity is empty. Restore the row from a backup, or insert a "
            "row with a new UUID and restart all processes"
        )
    return found
