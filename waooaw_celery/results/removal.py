"""Finds and removes results in the result backend, for an erasure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from celery.backends.base import DisabledBackend, KeyValueStoreBackend
from celery.backends.redis import RedisBackend
from celery.backends.rpc import RPCBackend
from celery.states import PENDING

from waooaw_celery.errors import BackendUnavailable, DecodingFailed
from waooaw_celery.results.pending import BACKEND_ERRORS

#: Results that are read or deleted with one command.
_BATCH_SIZE = 500


class StoredResults:
    """The results that a result backend stores.

    Every method raises BackendUnavailable if the backend does not answer.

    Args:
        backend: the result backend of an application.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    @property
    def is_searchable(self) -> bool:
        """Whether all results can be read: only Redis lists them."""
        return isinstance(self._backend, RedisBackend | DisabledBackend)

    @property
    def is_removable(self) -> bool:
        """Whether results can be removed. The backend ``rpc`` sends them to the callers' own queues."""
        return not isinstance(self._backend, RPCBackend)

    def find(self, matches: Callable[[Any], bool]) -> set[str]:
        """Return the ids of the messages whose stored results match.

        Args:
            matches: whether a result matches, as the backend stores it: with its state and traceback.
        """
        if not isinstance(self._backend, RedisBackend):
            return set()
        backend: Any = self._backend
        client, prefix = backend.client, backend.get_key_for_task("*")[:-1]  # bytes; Celery's stubs say str
        # The prefix of an application may contain signs of a pattern.
        pattern = re.sub(rb"([*?\[\]\\^])", rb"\\\1", prefix) + b"*"
        found = set()
        try:
            for keys in _batches(client.scan_iter(match=pattern, count=_BATCH_SIZE)):
                for key, raw in zip(keys, client.mget(keys), strict=True):
                    if raw is not None and matches(_decoded(backend, raw)):
                        found.add(key[len(prefix) :].decode())
        except BACKEND_ERRORS as error:
            raise BackendUnavailable(f"the results could not be searched: {error}") from error
        return found

    def remove(self, message_ids: Iterable[str]) -> int:
        """Remove the results of messages, and return how many there were."""
        backend: Any = self._backend
        try:
            if isinstance(backend, RedisBackend):
                keys = (backend.get_key_for_task(id_) for id_ in message_ids)
                return sum(backend.client.delete(*batch) for batch in _batches(keys))
            if isinstance(backend, DisabledBackend) or not self.is_removable:
                return 0
            return sum(_forget(backend, id_) for id_ in message_ids)
        except BACKEND_ERRORS as error:
            raise BackendUnavailable(f"the results could not be removed: {error}") from error


def _forget(backend: Any, message_id: str) -> bool:
    """Remove a result from any backend, and return whether there was one."""
    if isinstance(backend, KeyValueStoreBackend):
        key = backend.get_key_for_task(message_id)
        exists = backend.get(key) is not None
        if exists:
            backend.delete(key)
        return exists
    exists = bool(backend.get_state(message_id) != PENDING)
    if exists:
        backend.forget(message_id)
    return exists


def _decoded(backend: Any, raw: bytes) -> Any:
    try:
        return backend.decode(raw)
    except DecodingFailed:  # it may still contain what is searched
        return raw.decode("utf-8", "replace")


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH_SIZE)):
        yield batch
