"""The dead letters in the broker, by agent and kind of reason.

Each dead letter has its message, which may be large. On Redis a script reads only the queue and the reason, so
that no message leaves the server, and only when the stream has changed. On RabbitMQ dead letters are only counted:
to read them, they would have to be taken out for a moment.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from redis import Redis

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY
from waooaw_celery.errors import BrokerUnavailable, WaooawError
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.samples import OTHER, Samples, sender_label
from waooaw_celery.messages.queues import AGENT_QUEUES
from waooaw_celery.store.redis_refusals import explained

#: Dead letters that are read, and how many the server reads at a time.
MAX_READ, PAGE = 1000, 50
#: Groups of agent and reason that have series of their own.
MAX_GROUPS = 200
#: The reasons: the first pattern that a dead letter's sentence matches says which one it is.
REASONS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("dropped", re.compile(r"^dropped from the queue")),
    ("worker_lost", re.compile(r"WorkerLostError|^its consumer died|Terminated")),
    ("time_limit", re.compile(r"TimeLimitExceeded")),
    ("no_handler", re.compile(r"UnknownMethod|NoHandler|NotRegistered|no worker|no method|no handler")),
    ("undeliverable", re.compile(r"^(no queue is bound|it cannot be requeued|it could not be sent)")),
    ("rejected", re.compile(r"^Reject")),
    ("handler_error", re.compile(r"^[A-Za-z_][\w.]*(?=:|$)")),
    ("unreadable", re.compile(r"^(it |its |the |Refusing|Can't decode|.*decode)", re.IGNORECASE)),
)
#: The reason of sentences that match no pattern, and of dead letters that were not read.
OTHER_REASON, NOT_READ = "other", "not_read"
#: Returns [id, queue, reason] of the newest entries before an id, without their messages.
_SCRIPT = """
local found = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', ARGV[2])) do
  local fields, queue, reason = entry[2], '', ''
  for number = 1, #fields, 2 do
    if fields[number] == 'queue' then queue = fields[number + 1] end
    if fields[number] == 'reason' then reason = string.sub(fields[number + 1], 1, 300) end
  end
  found[#found + 1] = {entry[1], queue, reason}
end
return found
"""


def reason_of(sentence: str) -> str:
    """Return the kind of a dead letter's reason, one of a fixed set.

    Args:
        sentence: why it died.

    Example:
        >>> reason_of("ValueError: no such document")
        'handler_error'
    """
    return next((name for name, pattern in REASONS if pattern.search(sentence)), OTHER_REASON)


class DeadLetterReader:
    """Reads the dead letters of an application's broker.

    Args:
        app: the application.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self._seen: tuple[Any, ...] | None = None
        self._groups: Counter[tuple[str, str]] = Counter()

    def read(self) -> Samples:
        """Return how many there are.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        try:
            with self._app.connection_for_write() as connection:  # it has deadlines
                if self._app.driver == "redis":
                    with connection.channel() as channel:
                        total = self._read_stream(channel)
                else:
                    total = _length(connection)
                    self._groups = Counter({(OTHER, NOT_READ): total} if total else {})
        except WaooawError:  # some are a Kombu or connection error too
            raise
        except BROKER_ERRORS as error:
            raise BrokerUnavailable(f"the dead letters cannot be counted: {explained(error)}") from error
        samples = Samples()
        samples.set(metrics.DEAD_LETTERS_STORED, total)
        for number, (group, count) in enumerate(self._groups.most_common()):
            samples.add(metrics.DEAD_LETTERS, count, *(group if number < MAX_GROUPS else (OTHER, group[1])))
        return samples

    def _read_stream(self, channel: Any) -> int:
        """Return how many entries the stream has, and read the newest ones if it has changed."""
        client: Any = Redis(connection_pool=channel.pool)
        key = f"{channel.global_keyprefix}{DEAD_LETTERS_KEY}"
        length = int(client.xlen(key))
        newest = client.register_script(_SCRIPT)(keys=[key], args=["+", 1])
        # A new one changes the newest id, and a retry or a discard the length.
        seen = (length, newest[0][0] if newest else None)
        if seen != self._seen:
            self._groups = _groups(client, key)
            left = length - self._groups.total()
            if left > 0:
                self._groups[OTHER, NOT_READ] += left
            self._seen = seen
        return length


def _groups(client: Any, key: str) -> Counter[tuple[str, str]]:
    script = client.register_script(_SCRIPT)
    groups: Counter[tuple[str, str]] = Counter()
    before = "+"
    while groups.total() < MAX_READ:
        page = script(keys=[key], args=[before, PAGE])
        for _, queue, reason in page:
            groups[_agent(queue.decode("utf-8", "replace")), reason_of(reason.decode("utf-8", "replace"))] += 1
        if len(page) < PAGE:
            break
        before = f"({page[-1][0].decode()}"
    return groups


def _agent(queue: str) -> str:
    return sender_label(queue.removeprefix(AGENT_QUEUES)) if queue.startswith(AGENT_QUEUES) else OTHER


def _length(connection: Any) -> int:
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(DEAD_LETTERS_KEY, passive=True).message_count)
    except connection.channel_errors:  # there is no such queue: no message has died
        return 0
