"""Large payloads, which travel by reference: when a payload is one, where it is stored, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.references.reference import REFERENCE_SERIALIZER, Reference
from waooaw_celery.store.objects.object_store import NewObject, ObjectStore, Purged, new_key
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import NONE
from waooaw_celery.wire.packer import EncodedBody
from waooaw_celery.wire.references import arguments_in, check_may_be_loaded, reference_to, stored_bytes

#: The serializer and the compression of a message that carries a reference.
REFERENCE_ENCODING = (REFERENCE_SERIALIZER, NONE)


class LargePayloads:
    """The large payloads of one application.

    Args:
        above: bytes above which a payload travels by reference; None: none does.
        retention: how long a message is kept that does not say so itself.
        caps: the limits of what is loaded.
        open_store: opens the store, when it is first needed.
    """

    def __init__(
        self, above: int | None, retention: RetentionPolicy, caps: Caps, open_store: Callable[[], ObjectStore]
    ) -> None:
        # What is too large to travel is above every limit.
        self._above = None if above is None else min(above, caps.max_body_bytes)
        self._retention, self._caps = retention, caps
        self._open_store = open_store

    @cached_property
    def store(self) -> ObjectStore:
        """Where the payloads are.

        Raises:
            ConfigurationError: none is set, and there is no ledger; or it cannot be opened.
        """
        return self._open_store()

    @property
    def is_on(self) -> bool:
        """Whether large payloads are sent by reference here. Those of other senders are loaded in any case."""
        return self._above is not None

    def is_above(self, body: EncodedBody) -> bool:
        """Return whether a body travels by reference: the one place that decides it.

        What counts is what would travel: a large text that compresses well travels as before.

        Args:
            body: the body.
        """
        # No codec makes a body larger by more than a few bytes: most bodies need not be compressed for this.
        above = self._above
        return above is not None and len(body.text) > above and len(body.packed.body) > above

    def put(self, bodies: Sequence[tuple[EncodedBody, Sequence[Message]]], session: Any = None) -> list[Reference]:
        """Store bodies, and return the references to them.

        Args:
            bodies: each body with the messages that will carry its reference.
            session: the SQLAlchemy Session whose transaction records the messages; None: there is none.

        Raises:
            ReferenceStoreUnavailable: the store does not answer. What it has of them already is removed later.
        """
        references, objects = [], []
        for body, messages in bodies:
            packed = body.packed
            data, key = stored_bytes(packed), new_key(max(map(self._keep_until, messages)))
            objects.append(NewObject(key, data, [message.message_id for message in messages]))
            references.append(reference_to(packed, data, key))
        self.store.put(objects, session)
        return references

    def share(self, messages: Iterable[Message], session: Any = None) -> None:
        """Note which messages carry a reference to a payload that is stored already.

        Args:
            messages: messages; those that carry none are left out.
            session: as for ``put``.

        Raises:
            PayloadMissing: one of the payloads is not there any more.
            ReferenceStoreUnavailable: the store does not answer.
        """
        ids: dict[str, list[str]] = {}
        for message in messages:
            if message.reference is not None:
                ids.setdefault(message.reference.key, []).append(message.message_id)
        for key, message_ids in ids.items():
            self.store.share(key, message_ids, session)

    def load(self, reference: Reference) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments, positional and keyword, that a reference stands for.

        Args:
            reference: the reference.

        Raises:
            PayloadMissing: the store does not have them.
            PayloadAltered: they are not what was stored.
            DecodingFailed: they are larger than the limit, or cannot be decoded.
            ReferenceStoreUnavailable: the store does not answer.
        """
        check_may_be_loaded(reference, self._caps)
        return arguments_in(self.store.get(reference.key), reference, self._caps)

    def purge(self) -> Purged:
        """Remove the payloads that no message needs any more, and those that never got one.

        Raises:
            ReferenceStoreUnavailable: the store does not answer.
            ConfigurationError: there is no store.
        """
        return self.store.purge()

    def _keep_until(self, message: Message) -> Any:
        return (message.retention or self._retention).until(message.sent_at)


def open_store(url: str | None, has_ledger: bool, database: Callable[[], Any]) -> ObjectStore:
    """Return the store of large payloads.

    Args:
        url: the setting ``waooaw_reference_store``.
        has_ledger: whether there is a ledger, which then keeps account of the payloads.
        database: returns the ledger's database.

    Raises:
        ConfigurationError: there is neither a URL nor a ledger; or fsspec cannot open the URL.
    """
    from waooaw_celery.store.objects.files import FileStore

    files = None if url is None else FileStore(url)
    if has_ledger:
        # Imported here: a process without a ledger does not load SQLAlchemy.
        from waooaw_celery.ledger.objects.objects import LedgerObjects

        return LedgerObjects(database(), files)
    if files is None:
        raise ConfigurationError(
            "there is no store for large payloads: set waooaw_reference_store, such as file:///srv/payloads or "
            "s3://bucket/payloads, or a ledger (waooaw_database_url)"
        )
    return files
