"""Dead letters on Redis: entries of the stream into which the transport parks them too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from redis import Redis

from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter, DeadLetterStorage
from waooaw_celery.broker.redis.dead_lettering import DEAD_KEY

T = TypeVar("T")

#: Letters that are read together: each may have megabytes.
PAGE = 20


class RedisDeadLetterStorage(DeadLetterStorage):
    """The stream ``waooaw.dead``."""

    def add(self, queue: str, reason: str, raw: bytes) -> None:
        fields: Any = {"queue": queue, "reason": reason, "raw": raw}
        self._ask("keep a dead letter", lambda client, key: client.xadd(key, fields, maxlen=self._most))

    def list(self, choice: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        return self._ask("read the dead letters", partial(_chosen, choice, limit))

    def remove(self, ids: Collection[str]) -> set[str]:
        wanted = [id_ for id_ in dict.fromkeys(ids) if _is_id(id_)]

        def remove(client: Any, key: str) -> set[str]:
            pipeline = client.pipeline(transaction=False)
            for id_ in wanted:
                pipeline.xdel(key, id_)
            return {id_ for id_, count in zip(wanted, pipeline.execute(), strict=True) if count}

        return self._ask("remove dead letters", remove) if wanted else set()

    def _ask(self, what: str, do: Callable[[Any, str], T]) -> T:
        def ask(connection: Any) -> T:
            channel = connection.default_channel
            # A client of its own: the channel's would put the prefix of all keys before some commands only.
            with Redis(connection_pool=channel.pool) as client:
                return do(client, f"{channel.global_keyprefix}{DEAD_KEY}")

        return self._with(what, ask)


def _chosen(choice: DeadLetterFilter, limit: int, client: Any, key: str) -> list[DeadLetter]:
    entries = _named(choice.ids, client, key) if choice.ids is not None else _newest(choice, client, key)
    found: list[DeadLetter] = []
    for id_, fields in entries:
        at = datetime.fromtimestamp(int(id_.partition(b"-")[0]) / 1000, UTC)
        queue, reason = (fields.get(name, b"").decode("utf-8", "replace") for name in (b"queue", b"reason"))
        letter = DeadLetter.of(id_.decode(), queue, reason, at, fields.get(b"raw", b""))
        if choice.fits(letter):
            found.append(letter)
            if len(found) == limit:
                break
    return found


def _named(ids: Collection[str], client: Any, key: str) -> Iterator[Any]:
    for id_ in sorted(filter(_is_id, ids), key=lambda id_: [int(part) for part in id_.split("-")], reverse=True):
        yield from client.xrange(key, id_, id_)


def _newest(choice: DeadLetterFilter, client: Any, key: str) -> Iterator[Any]:
    lowest = "-" if choice.since is None else str(max(int(choice.since.timestamp() * 1000), 0))
    highest = "+"
    while page := client.xrevrange(key, highest, lowest, count=PAGE):
        yield from page
        highest = f"({page[-1][0].decode()}"


def _is_id(id_: str) -> bool:
    parts = id_.split("-")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
