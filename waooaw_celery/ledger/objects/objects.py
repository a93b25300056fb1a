"""Large payloads of a system with a ledger: the ledger knows which messages need each of them.

A payload is removed when no message needs it: its messages were purged or erased, or were never recorded. So a
payload that several messages share, such as the deliveries of an event, stays until the last of them is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, or_, select
from sqlalchemy.exc import IntegrityError

from waooaw_celery.errors import AuditUnavailable, PayloadMissing, ReferenceStoreUnavailable
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database, database_errors_as
from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.objects.models import ObjectRow, ObjectUseRow
from waooaw_celery.ledger.transactions.transaction import as_transaction
from waooaw_celery.store.objects.files import FileStore
from waooaw_celery.store.objects.object_store import ORPHAN_GRACE, NewObject, Purged, stored_at

#: Seconds that the database may take for a statement with a payload of many megabytes.
DEADLINE_SECONDS = 60.0
#: Payloads that one transaction removes.
_BATCH_SIZE = 100


class LedgerObjects:
    """Large payloads in the ledger's database, or in a file system that the ledger keeps account of.

    Args:
        database: the ledger's database.
        files: the file system that has the bytes; None: the database has them.
    """

    def __init__(self, database: Database, files: FileStore | None = None) -> None:
        self._database, self._files = database, files

    def put(self, objects: Sequence[NewObject], session: Any = None) -> None:
        """Store payloads. See ``ObjectStore.put``."""
        with self._connection("store payloads", session) as connection:
            self._insert(connection, objects)
        if self._files is not None:
            self._files.put(objects)

    def _insert(self, connection: Connection, objects: Sequence[NewObject]) -> None:
        now = now_in(connection)
        for each in objects:
            content = each.data if self._files is None else None
            row = {"key": each.key, "size": len(each.data), "stored_at": now, "content": content}
            connection.execute(insert(ObjectRow).values(row))
            self._use(connection, each.key, each.message_ids, now)

    def share(self, key: str, message_ids: Sequence[str], session: Any = None) -> None:
        """Note that more messages need a payload. See ``ObjectStore.share``."""
        with self._connection("share a payload", session) as connection:
            # The lock keeps a purge from removing it meanwhile.
            known = select(ObjectRow.key).where(ObjectRow.key == key).with_for_update(read=True)
            if connection.scalar(known) is None:
                raise _missing(key)
            used = select(ObjectUseRow.message_id).where(ObjectUseRow.key == key)
            before = set(connection.scalars(used.where(ObjectUseRow.message_id.in_(message_ids))))
            self._use(connection, key, [each for each in message_ids if each not in before], now_in(connection))
        if self._files is not None:
            self._files.share(key, message_ids)

    def get(self, key: str) -> bytes:
        """Return a payload. See ``ObjectStore.get``."""
        if self._files is not None:
            try:
                return self._files.get(key)
            except PayloadMissing:
                # It may have been stored before ``waooaw_reference_store`` was set.
                content = self._read(key)
                if content is None:
                    raise
                return content
        content = self._read(key)
        if content is None:
            raise _missing(key)
        return content

    def _read(self, key: str) -> bytes | None:
        with self._connection("read a payload", None) as connection:
            content = connection.scalar(select(ObjectRow.content).where(ObjectRow.key == key))
        return None if content is None else bytes(content)

    def used(self) -> Iterator[tuple[str, str]]:
        """Yield the key of each payload with the id of each message that carries its reference."""
        with self._connection("list the payloads", None) as connection:
            columns = (ObjectUseRow.key, ObjectUseRow.message_id)
            found = connection.execute(select(*columns).order_by(ObjectUseRow.key)).all()
        yield from ((key, message_id) for key, message_id in found)

    def purge(self) -> Purged:
        """Remove what no message needs. See ``ObjectStore.purge``."""
        with self._connection("look for messages of payloads", None) as connection:
            now = now_in(connection)
            orphans = self._forget_uses(connection, now)
        removed, orphaned, size = 0, 0, 0
        while True:
            keys, freed = self._remove_unused(now)
            if not keys:
                break
            if self._files is not None:
                self._files.delete(keys)
            orphaned += len(orphans & set(keys))
            removed, size = removed + len(keys), size + freed
        stray = self._stray_files(now)
        return Purged(
            objects=removed - orphaned,
            orphans=orphaned + len(stray),
            size=size + sum(each for _, each in stray),
        )

    def _forget_uses(self, connection: Connection, now: datetime) -> set[str]:
        """Delete the uses of messages that are gone, and return the keys of those that never had a message.

        A payload that was stored lately may belong to a message that is not recorded yet.
        """
        of_message = MessageRow.message_id == ObjectUseRow.message_id
        is_old = ObjectUseRow.used_at <= now - ORPHAN_GRACE
        is_gone = and_(is_old, ~exists().where(of_message))
        is_erased = exists().where(of_message, MessageRow.erased_at.is_not(None))
        # A message that was purged had been recorded for weeks; its payload is no orphan.
        columns = (ObjectUseRow.key, ObjectUseRow.used_at)
        recent = connection.execute(select(*columns).where(is_gone, ObjectUseRow.used_at > now - 3 * ORPHAN_GRACE))
        orphans = {row.key for row in recent}
        connection.execute(delete(ObjectUseRow).where(or_(is_gone, is_erased)))
        return orphans

    def _remove_unused(self, now: datetime) -> tuple[list[str], int]:
        """Delete the rows of some payloads without a use; return their keys and their size in bytes."""
        is_unused: ColumnElement[bool] = ~exists().where(ObjectUseRow.key == ObjectRow.key)
        if self._files is None:  # a process that knows the file system removes the others
            is_unused = and_(is_unused, ObjectRow.content.is_not(None))
        try:
            with self._connection("remove payloads", None) as connection:
                query = select(ObjectRow.key, ObjectRow.size).where(is_unused).limit(_BATCH_SIZE)
                found = connection.execute(query.with_for_update(skip_locked=True)).all()
                keys = [row.key for row in found]
                connection.execute(delete(ObjectRow).where(ObjectRow.key.in_(keys)))
        except ReferenceStoreUnavailable as error:
            if isinstance(getattr(error.__cause__, "__cause__", None), IntegrityError):
                return [], 0  # a message has begun to share one of them: the next purge goes on
            raise
        return keys, sum(row.size for row in found)

    def _stray_files(self, now: datetime) -> list[tuple[str, int]]:
        """Delete the files that no row names: those of a transaction that was rolled back."""
        if self._files is None:
            return []
        old = [(key, size) for key, size in self._files.stored() if stored_at(key) <= now - ORPHAN_GRACE]
        stray: list[tuple[str, int]] = []
        for start in range(0, len(old), _BATCH_SIZE):
            batch = old[start : start + _BATCH_SIZE]
            with self._connection("look up payloads", None) as connection:
                query = select(ObjectRow.key).where(ObjectRow.key.in_([key for key, _ in batch]))
                known = set(connection.scalars(query))
            stray += [each for each in batch if each[0] not in known]
        self._files.delete([key for key, _ in stray])
        return stray

    def _use(self, connection: Connection, key: str, message_ids: Iterable[str], now: datetime) -> None:
        rows = [{"key": key, "message_id": id_, "used_at": now} for id_ in message_ids]
        if rows:
            connection.execute(insert(ObjectUseRow), rows)

    @contextmanager
    def _connection(self, what: str, session: Any) -> Iterator[Connection]:
        """Yield the connection of a session, or one of the ledger's own in a transaction."""
        try:
            if session is not None:
                with database_errors_as(what):
                    yield as_transaction(session).connection()  # type: ignore[misc]  # or what acts as one
                return
            with self._database.begin(what, DEADLINE_SECONDS) as connection:
                yield connection
        except AuditUnavailable as error:
            raise ReferenceStoreUnavailable(str(error)) from error


def _missing(key: str) -> PayloadMissing:
    return PayloadMissing(
        f"the payload {key} is not in the ledger's database: restore it, or give this process the "
        "waooaw_reference_store of the sender; then retry the message"
    )
