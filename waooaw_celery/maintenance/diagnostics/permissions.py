"""What the user of each Redis may do: the commands, the keys and the channels that this package uses.

A user may not ask for its own permissions, so each command is tried on keys of the check, which are deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from redis.exceptions import NoPermissionError, ResponseError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.maintenance.diagnostics.connections import redis_clients
from waooaw_celery.maintenance.diagnostics.finding import Finding, fail, ok, warn
from waooaw_celery.store.keys import key_prefix
from waooaw_celery.store.redis_refusals import explained, lacks_permission

#: Seconds after which the keys of the check expire, if it dies before it has deleted them.
KEY_SECONDS = 60
#: What begins the keys of each kind: queues, unacknowledged messages, Kombu's bindings, this package's, results.
KEY_KINDS = ("agent.", "unacked", "_kombu.", "waooaw.", "waooaw:", "celery-task-meta-")
#: The commands that only workers need.
OF_WORKERS = frozenset({"HEXISTS", "RPUSH", "SETEX", "XADD", "ZSCORE", "PSUBSCRIBE"})


def redis_permissions(app: AgentApp) -> Iterator[Finding]:
    """Check that the user of each Redis has the permissions that senders and workers need.

    Raises:
        RedisError, OSError: a server does not answer.
    """
    prefix = key_prefix(app.conf)
    for role, opened in redis_clients(app):
        name = f"permissions on the {role}"
        with opened() as client:
            refused = {**_refused_commands(client, prefix), **_refused_keys(client, prefix)}
            refused |= _refused_channel(client, prefix)
        needed = {each: why for each, why in refused.items() if each not in OF_WORKERS}
        if needed:
            yield fail(name, f"messages cannot be sent: {'; '.join(needed.values())}")
        if others := {each: why for each, why in refused.items() if each in OF_WORKERS}:
            sentence = f"enough to send, and not enough for a worker with this user: {'; '.join(others.values())}"
            yield warn(name, sentence)
        if not refused:
            yield ok(name, "its user may run the commands, and use the keys and the channels, that are needed")


def _refused_commands(client: Any, prefix: str) -> dict[str, str]:
    """Try each command; return why those were refused that the user may not run, by command."""
    key = f"{prefix}waooaw.doctor-{uuid4().hex[:8]}"
    keys = {kind: f"{key}-{kind}" for kind in ("hash", "zset", "list", "set", "text", "stream")}
    commands = list(_commands(keys))
    refused: dict[str, str] = {}
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        for each in keys.values():
            pipeline.execute_command("EXPIRE", each, KEY_SECONDS)
        pipeline.execute_command("DEL", *keys.values())
        replies = pipeline.execute(raise_on_error=False)
    names = [command[0] for command in commands] + ["EXPIRE"] * len(keys) + ["DEL"]
    for command, reply in zip(names, replies, strict=True):
        if isinstance(reply, ResponseError) and lacks_permission(reply) and "command" in str(reply):
            refused[command] = explained(reply)
    return refused


def _commands(keys: dict[str, str]) -> Iterator[Sequence[Any]]:
    """Yield a harmless call of each command, in the order in which they depend on each other."""
    hash_, zset, list_, set_, text, stream = keys.values()
    yield from (("PING",), ("TIME",), ("EVAL", "return 1", 0), ("SCRIPT", "EXISTS", "0" * 40))
    yield from (("EXISTS", text), ("TTL", text), ("SCAN", 0, "MATCH", text, "COUNT", 1))
    yield from (("LPUSH", list_, 1, 2, 3, 4), ("RPUSH", list_, 1), ("LLEN", list_), ("LRANGE", list_, 0, 0))
    yield from (("LTRIM", list_, 0, 9), ("LPOP", list_), ("BLPOP", list_, 1))
    yield from (("SADD", set_, 1), ("SMEMBERS", set_), ("SREM", set_, 1))
    yield from (("HSET", hash_, "f", 1), ("HSETNX", hash_, "f", 1), ("HGET", hash_, "f"), ("HGETALL", hash_))
    yield from (("HMGET", hash_, "f"), ("HINCRBY", hash_, "f", 1), ("HEXISTS", hash_, "f"), ("HDEL", hash_, "f"))
    yield from (("ZADD", zset, 1, "m"), ("ZRANGE", zset, 0, 0), ("ZRANGEBYSCORE", zset, 0, 0))
    yield from (("ZSCORE", zset, "m"), ("ZREM", zset, "m"), ("ZREMRANGEBYSCORE", zset, 0, 0))
    yield from (("SET", text, 1), ("GET", text), ("SETRANGE", text, 0, "1"), ("SETEX", text, 9, 1), ("MGET", text))
    yield from (("XADD", stream, "1-1", "f", 1), ("XRANGE", stream, "-", "+"), ("XREVRANGE", stream, "+", "-"))
    yield ("XDEL", stream, "1-1")


def _refused_keys(client: Any, prefix: str) -> dict[str, str]:
    """Return why the user may not use keys of some kinds, by kind."""
    refused = {}
    for kind in KEY_KINDS:
        key = f"{prefix}{kind}waooaw-doctor"
        try:
            client.execute_command("EXISTS", key)
        except NoPermissionError as error:
            if "key" in str(error).partition("caused error:")[2]:
                refused[kind] = explained(error)
    return refused


def _refused_channel(client: Any, prefix: str) -> dict[str, str]:
    """Return why the user may not publish to a channel of this package, by command."""
    channel = f"{prefix}waooaw:doctor"
    try:
        client.execute_command("PUBLISH", channel, "")
    except NoPermissionError as error:
        text = explained(error)
        return {"PUBLISH": re.sub(r"the key (?=')", "the channel ", text)}
    return {}
