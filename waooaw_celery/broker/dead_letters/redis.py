"""Dead letters on Redis: entries of the stream that the transport's scripts also write to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from redis import Redis

from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter, DeadLetterStorage
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY

T = TypeVar("T")

#: Dead letters that are read together: each may have megabytes.
PAGE_SIZE = 20


class RedisDeadLetterStorage(DeadLetterStorage):
    """The dead letters in the stream ``waooaw.dead``."""

    def add(self, queue: str, reason: str, *raw: bytes) -> None:
        def add(client: Any, key: str) -> None:
            pipeline = client.pipeline(transaction=False)
            for each in raw:
                pipeline.xadd(key, {"queue": queue, "reason": reason, "raw": each}, maxlen=self._max_count)
            pipeline.execute()

        self._with_client("store a dead letter", add)

    def list(self, selected: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        return self._with_client("read the dead letters", partial(_select, selected, limit))

    def remove(self, ids: Collection[str]) -> set[str]:
        entry_ids = [id_ for id_ in dict.fromkeys(ids) if _is_entry_id(id_)]

        def remove(client: Any, key: str) -> set[str]:
            pipeline = client.pipeline(transaction=False)
            for id_ in entry_ids:
                pipeline.xdel(key, id_)
            return {id_ for id_, count in zip(entry_ids, pipeline.execute(), strict=True) if count}

        return self._with_client("remove dead letters", remove) if entry_ids else set()

    def _with_client(self, what: str, do: Callable[[Any, str], T]) -> T:
        def use(connection: Any) -> T:
            channel = connection.default_channel
            # Its own client, because the channel's adds the key prefix to some commands only.
            with Redis(connection_pool=channel.pool) as client:
                return do(client, f"{channel.global_keyprefix}{DEAD_LETTERS_KEY}")

        return self._with_connection(what, use)


def _select(selected: DeadLetterFilter, limit: int, client: Any, key: str) -> list[DeadLetter]:
    by_id = selected.ids is not None
    entries = _entries_by_id(selected.ids or (), client, key) if by_id else _newest_entries(selected, client, key)
    found: list[DeadLetter] = []
    for id_, fields in entries:
        at = datetime.fromtimestamp(int(id_.partition(b"-")[0]) / 1000, UTC)
        queue, reason = (fields.get(name, b"").decode("utf-8", "replace") for name in (b"queue", b"reason"))
        dead_letter = DeadLetter.of(id_.decode(), queue, reason, at, fields.get(b"raw", b""))
        if selected.matches(dead_letter):
            found.append(dead_letter)
            if len(found) == limit:
                break
    return found


def _entries_by_id(ids: Collection[str], client: Any, key: str) -> Iterator[Any]:
    entry_ids = filter(_is_entry_id, ids)
    for id_ in sorted(entry_ids, key=lambda id_: [int(part) for part in id_.split("-")], reverse=True):
        yield from client.xrange(key, id_, id_)


def _newest_entries(selected: DeadLetterFilter, client: Any, key: str) -> Iterator[Any]:
    lowest = "-" if selected.since is None else str(max(int(selected.since.timestamp() * 1000), 0))
    highest = "+"
    while page := client.xrevrange(key, highest, lowest, count=PAGE_SIZE):
        yield from page
        highest = f"({page[-1][0].decode()}"


def _is_entry_id(id_: str) -> bool:
    parts = id_.split("-")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
