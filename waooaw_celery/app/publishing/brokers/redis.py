"""Sends over a Redis that is the broker and the store of receipts: one script does all of it, in one round trip.

The script counts the messages against their sender's rate limit, checks that none was sent before, records them,
and puts them into their queues: all of them or none. The publisher takes its usual way where the receipts are on
another server than the broker, where a ledger records, and where somebody listens to Celery's signals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeGuard

import msgpack
from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # its stubs are old
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from waooaw_celery.app.publishing.already_sent import check_not_sent_before
from waooaw_celery.app.publishing.publication import Batch, Publication
from waooaw_celery.app.publishing.publish_batch import PublishBatch
from waooaw_celery.app.publishing.publish_failures import refused
from waooaw_celery.broker.redis.batch import MAX_CHARACTERS, batch_refused
from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.broker.redis.scripts import SEND, Script
from waooaw_celery.limits.redis import DECIDE, RedisStorage
from waooaw_celery.limits.rules import Demand
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.queues import first_url
from waooaw_celery.store.connection import is_redis, is_same_redis, redis_address, store_errors, store_url
from waooaw_celery.store.receipts import RedisReceipts
from waooaw_celery.store.redis_refusals import is_refusal, takes_no_writes
from waooaw_celery.worker.current_task import current_task

#: Counts messages, and sends them if they pass.
_COUNT_AND_SEND = Script(
    f"""#!lua
local function decide(KEYS, ARGV)
{DECIDE}
end
local function send(KEYS, ARGV)
{SEND.text.removeprefix("#!lua")}
end
local keys, args = tonumber(ARGV[1]), tonumber(ARGV[2])
local refusal = decide({{ unpack(KEYS, 1, keys) }}, {{ unpack(ARGV, 3, args + 2) }})
if #refusal > 0 then
    return {{ refusal, {{}} }}
end
return {{ refusal, send({{ unpack(KEYS, keys + 1) }}, {{ unpack(ARGV, args + 3) }}) }}
"""
)


class RedisSend:
    """Sends messages of an application with one script.

    Args:
        app: the application, an AgentApp.
        components: its parts: the store of receipts, and the rate limiter.
    """

    def __init__(self, app: Any, components: Any) -> None:
        self._app, self._components = app, components
        #: Whether the receipts are on another server than the broker; None: it is not known yet.
        self._is_elsewhere: bool | None = None

    def may_take(self, publication: Publication) -> TypeGuard[PublishBatch]:
        """Return whether messages may be sent this way, as far as it is known without a connection.

        Args:
            publication: the messages, which do not follow the end of a handler.
        """
        return (
            isinstance(publication, PublishBatch)
            and type(self._components.receipts) is RedisReceipts
            and not self._are_receipts_elsewhere()
            and publication.may_bypass_celery()
            and bool(publication.batch)
            and not any(message.message_type is MessageType.RESPONSE for _, message in publication.batch)
            and not _replaces_running_message(publication.batch)
        )

    def _are_receipts_elsewhere(self) -> bool:
        """Whether the settings name another server for the receipts, before anything is connected."""
        if self._is_elsewhere is None:
            url = first_url(self._app.conf.broker_write_url)
            options = self._components.receipts.client.connection_pool.connection_kwargs
            if not is_redis(url):
                self._is_elsewhere = True
            else:
                broker = parse_url(store_url(url))  # type: ignore[no-untyped-call]
                self._is_elsewhere = redis_address(broker) != redis_address(options)
        return self._is_elsewhere

    def send(self, publication: PublishBatch, channel: Any, demands: Sequence[Demand] = ()) -> bool:
        """Send messages that ``may_take`` accepts: all of them, or none.

        Args:
            publication: the messages, whose queues are declared.
            channel: the channel of a connection that nobody else uses.
            demands: what is counted against the rate limit of their only sender; nothing: they were counted.

        Returns:
            False if they cannot be sent this way. Nothing was done.

        Raises:
            RateLimitExceeded: the limit does not let them pass. InvalidMessage: one was sent before.
            StoreUnavailable: the server's user may not record them. In these cases, nothing was done.
            BrokerUnavailable: the server refused them, which is certain.
            RedisError: it is not known whether the server has them.
        """
        receipts: RedisReceipts = self._components.receipts
        if type(channel) is not Channel:
            return False
        if not is_same_redis(channel.scripts_client, receipts.client):
            self._is_elsewhere = True
            return False
        limiter = self._components.limiter if demands else None
        if limiter is not None and not (
            isinstance(limiter.storage, RedisStorage)
            and is_same_redis(channel.scripts_client, limiter.storage.client)
        ):
            return False
        call = _Call.of(publication, channel, receipts)
        if call is None:
            return False
        if limiter is None:
            sent_before = call.run(SEND, call.keys, call.args)
        else:
            sender = publication.batch[0][1].from_agent
            keys, args = limiter.charge_arguments(sender, demands)
            counts = [len(keys), len(args)]
            refusal, sent_before = call.run(_COUNT_AND_SEND, [*keys, *call.keys], [*counts, *args, *call.args])
            if refusal and call.lost is not None:  # the first run may have used up the limit
                raise BatchPublishError("the connection was lost") from call.lost
            limiter.check_reply(sender, demands, refusal)
        if sent_before and not call.has_sent(sent_before):
            new = {message.message_id for _, message in publication.batch}
            new -= {id_.decode() for id_ in sent_before}
            check_not_sent_before(receipts, publication.batch, new, withdraws=False)
        return True


class _Call:
    """One call of a script.

    Args:
        channel: the channel over which it is made.
        batch: the messages.
        lists: the keys of their lists, and of their queues' doorbells.
        keys: the KEYS of ``broker/redis/lua/send.lua``.
        args: its ARGV.

    Attributes:
        lost: the error of the connection over which the first run was lost; None: there was one run.
    """

    def __init__(
        self, channel: Channel, batch: Batch, lists: list[tuple[str, str]], keys: list[str], args: list[Any]
    ) -> None:
        self._channel, self._batch, self._lists = channel, batch, lists
        self.keys, self.args = keys, args
        self.lost: RedisConnectionError | None = None

    @classmethod
    def of(cls, publication: PublishBatch, channel: Channel, receipts: RedisReceipts) -> Self | None:
        """Return the call that sends messages, or None: they are too large for one call."""
        batch = publication.batch
        keys, args, facts = receipts.send_arguments([message for _, message in batch])
        routes: dict[tuple[str, ...], int] = {}
        messages = []
        # The messages of an event share their text: the script makes the messages of it.
        shared = publication.shared_text(channel) if batch[0][1].event is not None else None
        texts: Iterable[tuple[str, str, Any]] = (
            publication.texts(channel) if shared is None else publication.own_values(channel)
        )
        size = 0 if shared is None else len(batch) * sum(map(len, shared[0]))
        for (target, message), (list_, bell, text), fact in zip(batch, texts, facts, strict=True):
            names = message.from_agent, message.to_agent, target.handler
            route = (list_, bell, *names, message.message_type, message.priority)  # two StrEnums
            messages.append((routes.setdefault(route, len(routes) + 1), *fact, text))
            size += len(text) if shared is None else 0
        if size > MAX_CHARACTERS and len(batch) > 1:
            return None
        lists = [(route[0], route[1]) for route in routes]
        content = [route[2:] for route in routes], messages
        packed = msgpack.packb(content if shared is None else (*content, shared))
        # An event without an id of its publisher has a new one, and so has each of its messages.
        checks = int(shared is None or not batch[0][1].has_new_id)
        args += checks, packed
        return cls(channel, batch, lists, [*keys, *(key for pair in lists for key in pair)], args)

    def run(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Run a script. Over a lost connection it is repeated: it does nothing for messages that were sent.

        Raises:
            StoreUnavailable, BrokerUnavailable, RedisError: as ``RedisSend.send``.
        """
        connection = self._channel.scripts_client.connection
        try:
            try:
                return script.run(connection, keys, args)
            except RedisConnectionError as error:
                self.lost = error
                args[-2] = 1  # they may have been sent by the first run
                return script.run(connection, keys, args)
        except ResponseError as error:
            if takes_no_writes(error):
                connection.disconnect()  # the name in the URL may lead to another server now
            if self.lost is not None or str(error).startswith("PUSHED"):
                raise BatchPublishError("the outcome is unknown") from (self.lost or error)
            if is_refusal(error):
                raise refused(self._batch, batch_refused(error, self._lists)) from error
            with store_errors(f"record message {self._batch[0][1].message_id}"):
                raise

    def has_sent(self, sent_before: Sequence[bytes]) -> bool:
        """Return whether the lost run of this call has sent the messages, and no earlier call.

        Args:
            sent_before: ids of those of the messages that were sent before.

        Raises:
            BatchPublishError: it is not known.
        """
        if self.lost is None:
            return False
        if len(sent_before) == len(self._batch) and all(message.has_new_id for _, message in self._batch):
            return True
        raise BatchPublishError("the connection was lost") from self.lost


def _replaces_running_message(batch: Batch) -> bool:
    """Return whether the handler that runs replaces itself, so that its own message is sent again."""
    task = current_task()
    return task is not None and any(message.message_id == task.request.id for _, message in batch)
