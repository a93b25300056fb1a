"""The ledger: its database, its tables, the permissions of its role, and the spool."""

from __future__ import annotations

from collections.abc import Iterator

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.maintenance.diagnostics.finding import Finding, fail, ok, warn

# SQLAlchemy is imported when a check runs that needs it: a process without a ledger does not load it.

#: The rights without which nothing is recorded, and those without which only parts of the package work.
NEEDED, USEFUL = ("SELECT", "INSERT"), ("UPDATE", "DELETE")


def ledger_database(app: AgentApp) -> Iterator[Finding]:
    """Check that the ledger's database answers and takes writes.

    Raises:
        AuditUnavailable: it does not answer.
    """
    name = "ledger database"
    if not app.components.has_ledger:
        yield ok(name, "there is no ledger: receipts are kept in Redis, and expire")
        return
    from sqlalchemy import text

    database = app.database
    if not database.is_postgresql:
        with database.begin("check the database") as connection:
            version = connection.scalar(text("SELECT sqlite_version()"))
        yield ok(name, f"SQLite {version} answers")
        return
    with database.begin("check the database") as connection:
        version = connection.scalar(text("SHOW server_version"))
        replica = connection.scalar(text("SELECT pg_is_in_recovery()"))
        read_only = connection.scalar(text("SHOW default_transaction_read_only")) == "on"
    if replica or read_only:
        what = "is a standby" if replica else "has default_transaction_read_only = on"
        yield fail(name, f"PostgreSQL {version} {what} and takes no writes. Its URL must lead to the primary")
    else:
        yield ok(name, f"PostgreSQL {version} answers and takes writes")


def ledger_schema(app: AgentApp) -> Iterator[Finding]:
    """Check that the ledger's tables are those of this version.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    if not app.components.has_ledger:
        return
    from waooaw_celery.ledger.database.version import NEWEST, check_version

    try:
        check_version(app.database)
    except ConfigurationError as error:
        yield fail("ledger schema", str(error))
    else:
        yield ok("ledger schema", f"it is {NEWEST}, the one of this version")


def ledger_permissions(app: AgentApp) -> Iterator[Finding]:
    """Check that the role may read and write the ledger's tables in PostgreSQL.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    if not app.components.has_ledger or not app.database.is_postgresql:
        return
    from sqlalchemy import inspect, text

    from waooaw_celery.ledger.database.models import Base

    name = "ledger permissions"
    with app.database.begin("read the permissions on the ledger") as connection:
        role = connection.scalar(text("SELECT current_user"))
        present = set(inspect(connection).get_table_names())
        tables = [table for table in Base.metadata.tables if table in present]
        lacking: dict[str, list[str]] = {}
        for table in tables:
            for right in (*NEEDED, *USEFUL):
                allowed = text("SELECT has_table_privilege(:table, :right)")
                if not connection.scalar(allowed, {"table": table, "right": right}):
                    lacking.setdefault(right, []).append(table)
    for rights, found, consequence in (
        (NEEDED, fail, "nothing is recorded there"),
        (USEFUL, warn, "workers, the recovery and the purge cannot do their work with it"),
    ):
        for right in rights:
            if right in lacking:
                listed = ", ".join(lacking[right])
                grant = f"GRANT {right} ON {listed} TO {role}"
                yield found(name, f"the role {role} may not {right} on {listed}: {consequence}. Run `{grant}`")
    if not lacking and tables:
        yield ok(name, f"the role {role} may read and write all {len(tables)} tables")


def spool(app: AgentApp) -> Iterator[Finding]:
    """Check the folder in which outcomes wait while the database is down.

    Raises:
        ConfigurationError: it cannot be written, or belongs to another user.
        AuditUnavailable: the database does not answer.
    """
    if app.components.has_ledger:
        app.ledger.spool.check()
        yield ok("spool", f"its file {app.ledger.spool.path} can be written")
