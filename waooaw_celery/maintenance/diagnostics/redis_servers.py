"""Each Redis: its version, and the states and settings with which it refuses or loses what it is given."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import NoPermissionError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.maintenance.diagnostics.connections import BROKER, RESULTS, redis_clients
from waooaw_celery.maintenance.diagnostics.finding import Finding, fail, ok, warn
from waooaw_celery.store.redis_refusals import explained, refusal_in
from waooaw_celery.worker.health.startup_checks import redis_faults

#: The oldest major version of Redis; Valkey reports a version of Redis that is newer.
MIN_VERSION = 7
#: Share of the memory limit from which there is a warning.
FULL_SHARE = 0.9


def redis_servers(app: AgentApp) -> Iterator[Finding]:
    """Check each Redis of the application: broker, store and results; one that is the same is checked once."""
    for role, opened in redis_clients(app):
        try:
            with opened() as client:
                client.ping()
                try:
                    info = client.info()
                except NoPermissionError as error:
                    sentence = "it answers. Its settings cannot be checked for the loss of messages"
                    yield warn(role, f"{sentence}: {explained(error)}")
                    continue
        except Exception as error:  # noqa: BLE001 - the other servers are still checked
            text = explained(error).rstrip(".") or type(error).__name__
            if refusal_in(error) is not None:  # such as a replica
                yield fail(role, text)
            else:
                yield fail(role, f"it does not answer: {text}. Check that it runs, and its URL in the settings")
            continue
        yield from redis_findings(role, info, app.settings)


def redis_findings(role: str, info: Mapping[str, Any], settings: Any) -> Iterator[Finding]:
    """Yield what a Redis' reply to INFO says about it.

    Args:
        role: what the server keeps, a constant of ``connections.py``.
        info: its reply to INFO.
        settings: the application's `waooaw_*` settings.
    """
    version = str(info.get("redis_version", "0"))
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    found = list(_states(role, info))
    if int(version.partition(".")[0]) < MIN_VERSION:
        found.append(fail(role, f"it is {name}: use Redis {MIN_VERSION} or newer, or Valkey"))
    if role == BROKER:
        for fault in redis_faults(info, settings):
            sentence = fault.sentence
            if fault.action == "broker_forgets":
                sentence = f"{sentence}. {_snapshots(info)}"
            found.append((fail if fault.is_fatal else warn)(role, sentence))
    elif role != RESULTS and _evicts(info):
        policy = info.get("maxmemory_policy")
        sentence = f"it removes agents and receipts when its memory is full (maxmemory-policy {policy})"
        found.append(warn(role, f"{sentence}. Set it to noeviction"))
    yield ok(role, f"it answers: {name}")
    yield from found


def _states(role: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the states in which a server takes no writes."""
    if int(info.get("loading", 0)):
        yield fail(role, "it still loads its data from disk, and refuses commands. Wait until it has loaded them")
    if info.get("role") == "slave":
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        sentence = f"it is a replica of {master}, which takes no writes"
        yield fail(role, f"{sentence}. Its URL must lead to the master; sentinel:// follows it")
    if info.get("aof_last_write_status", "ok") != "ok" or (
        info.get("rdb_last_bgsave_status", "ok") != "ok" and int(info.get("rdb_changes_since_last_save", 0))
    ):
        yield fail(role, "it could not write to its disk, and may refuse writes (MISCONF). Free space on the disk")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if limit and not _evicts(info) and used >= FULL_SHARE * limit:
        sentence = f"it uses {used / limit:.0%} of its memory limit, and refuses messages when that is full"
        yield (fail if used >= limit else warn)(role, f"{sentence}. Raise maxmemory, or let workers catch up")


def _evicts(info: Mapping[str, Any]) -> bool:
    return info.get("maxmemory_policy", "noeviction") != "noeviction" and int(info.get("maxmemory", 0)) > 0


def _snapshots(info: Mapping[str, Any]) -> str:
    """Return what snapshots (RDB) save of a server that has no append-only file."""
    saved, started = int(info.get("rdb_last_save_time", 0)), time.time() - int(info.get("uptime_in_seconds", 0))
    changes = info.get("rdb_changes_since_last_save", "?")
    if saved <= started + 1:  # a server that has saved nothing yet reports its start
        return f"It has written no snapshot (RDB) since its start either: {changes} changes would be lost"
    minutes = max(time.time() - saved, 0.0) / 60
    return f"Its last snapshot (RDB) is {minutes:.0f} min old: the {changes} changes since would be lost"
