"""`waooaw doctor --project`: what changes for an existing Celery application when it becomes an AgentApp.

It reads the configuration and the tasks only, and asks no server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import Celery

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.celery_defaults import CELERY_DEFAULTS
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.maintenance.diagnostics.finding import Finding, ok, warn
from waooaw_celery.messages.queues import HandlerName, check_ordered, driver_type, first_url
from waooaw_celery.settings import WaooawSettings

#: Names of a few tasks in a sentence.
_SHOWN = 5


def project_changes(app: Celery) -> list[Finding]:
    """Return what changes for an application when it becomes an AgentApp, and what stays.

    Args:
        app: the application, which may be an AgentApp already.

    Returns:
        One finding for each topic: ok where nothing changes, warn where something does. Each names the setting
        that keeps what you have.

    Example:
        >>> for finding in project_changes(Celery("shop")):
        ...     print(finding.state, finding.name, finding.sentence)
    """
    app.loader.import_default_modules()
    app.finalize(auto=True)
    return [finding for check in _CHECKS for finding in check(app)]


def _given(app: Celery) -> Mapping[str, Any]:
    """Return the settings that the project itself gives, by their present names."""
    conf: Any = app.conf
    # An AgentApp inserts its own defaults above Celery's.
    own = 2 if isinstance(app, AgentApp) else 1
    given: dict[str, Any] = {}
    for map_ in reversed(conf.maps[:-own]):
        given |= {_present_name(conf, key): value for key, value in dict(map_).items()}
    return given


def _present_name(conf: Any, key: str) -> str:
    prefix = conf.prefix or ""
    name = key.removeprefix(prefix) if prefix else key
    return name.lower()


def _default_change(name: str, keep: str, sentence: str) -> Callable[[Celery], Iterator[Finding]]:
    """Return a check of a setting whose default changes.

    Args:
        name: the topic.
        keep: the setting.
        sentence: what changes, with the place of the new value in braces.
    """

    def check(app: Celery) -> Iterator[Finding]:
        given = _given(app)
        if keep in given:
            yield ok(name, f"{keep} = {given[keep]!r:.80} is yours, and stays")
        else:
            changed = sentence.format(new=CELERY_DEFAULTS[keep])
            yield warn(name, f"{changed}. To keep Celery's behaviour, set {keep}")

    return check


def _serializer(app: Celery) -> Iterator[Finding]:
    given = _given(app)
    accepted = [str(each) for each in given.get("accept_content") or ()]
    serializers = {name: given[name] for name in ("task_serializer", "result_serializer") if name in given}
    tasks = [name for name, task in _own_tasks(app) if task.serializer not in (None, *_READABLE)]
    unreadable = [each for each in (*accepted, *map(str, serializers.values())) if each not in _READABLE]
    if unreadable or tasks:
        where = f"; the tasks {_listed(tasks)} choose another format" if tasks else ""
        yield warn(
            "serializer",
            f"the project uses {_listed(sorted(set(unreadable)) or ['other formats'])}{where}. "
            "An agent's handler takes JSON values, with dates, UUIDs, Decimals and bytes; pickle is accepted "
            "only if accept_content names it. Change the arguments of a task before you move it",
        )
    else:
        yield ok("serializer", "the project uses JSON or MessagePack, as agents do")


def _priorities(app: Celery) -> Iterator[Finding]:
    given = _given(app)
    found = [f"task {name}" for name, task in _own_tasks(app) if task.priority is not None]
    found += [
        f"schedule {name}"
        for name, entry in dict(app.conf.beat_schedule or {}).items()
        if "priority" in (entry.get("options") or {})
    ]
    found += [each for each in ("task_default_priority", "task_inherit_parent_priority") if given.get(each)]
    if found:
        yield warn(
            "priorities",
            f"numbers are set by {_listed(found)}. On Redis 0 is first, on RabbitMQ 9. An ordinary task keeps its "
            "number; one that becomes a handler takes URGENT, HIGH, NORMAL or LOW, and refuses a number",
        )
    else:
        yield ok("priorities", "no task has a number as priority; an ordinary task without one becomes NORMAL")


def _expiry(app: Celery) -> Iterator[Finding]:
    ttl = WaooawSettings().ttl_seconds
    expiring = [name for name, task in _own_tasks(app) if getattr(task, "expires", None) is not None]
    own = f" The tasks {_listed(expiring)} have an expiry of their own" if expiring else ""
    yield warn(
        "expiry",
        f"ordinary tasks expire as before. A message to an agent, also by .delay, expires after {ttl:g} s unless "
        f"a worker has begun it: set waooaw_ttl_seconds, or expires= for one call.{own}",
    )


def _names(app: Celery) -> Iterator[Finding]:
    two_parts = [name for name, _ in _own_tasks(app) if HandlerName.parse(name) is not None]
    if two_parts:
        yield warn(
            "task names",
            f"named like handlers: {_listed(two_parts)}. They stay ordinary tasks as long as the application "
            "registers them, or no agent has the name before the point: do not name an agent so",
        )
    else:
        yield ok(
            "task names", "no task is named like an agent's handler. A moved task is named <agent>.<function>"
        )


def _queues(app: Celery) -> Iterator[Finding]:
    given = _given(app)
    name = given.get("task_default_queue")
    if name is not None:
        yield ok(
            "queues", f"task_default_queue = {name!r} is yours, and stays: a worker needs -Q {name},agent.NAME"
        )
        return
    yield warn(
        "queues",
        "in an application with an agent, ordinary tasks go to the agent's queue. Set "
        "task_default_queue = 'celery' and start the worker with -Q celery,agent.NAME; without -Q it reads "
        "the queues of all its agents",
    )


def _eager(app: Celery) -> Iterator[Finding]:
    if app.conf.task_always_eager:
        yield warn(
            "eager tasks",
            "task_always_eager runs .delay in place, also of a handler. Messages, requests and events go through "
            "the broker: tests of agents need a worker",
        )


def _broker(app: Celery) -> Iterator[Finding]:
    url = first_url(app.conf.broker_url) or "amqp://"
    try:
        driver = driver_type(url)
        check_ordered(driver, False)
    except ConfigurationError as error:
        yield warn("broker", str(error))
        return
    options = _given(app).get("broker_transport_options") or {}
    if driver == "redis" and "visibility_timeout" in options:
        yield warn(
            "broker",
            "a worker's lease is broker_transport_options['visibility_timeout'], which is yours: "
            f"{options['visibility_timeout']} s until the messages of a killed worker are redelivered. Agents "
            "renew their leases, so leave it out: then it takes 15 s",
        )
    else:
        yield ok("broker", f"{driver} keeps priorities; agents use queues named agent.NAME beside yours")


def _own_tasks(app: Celery) -> list[tuple[str, Any]]:
    from waooaw_celery.worker.task import AgentTask

    return [
        (name, task)
        for name, task in sorted(app.tasks.items())
        if not name.startswith(("celery.", "waooaw.")) and not isinstance(task, AgentTask)
    ]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


_READABLE = ("json", "msgpack", "protobuf", "application/json", "application/x-msgpack", "application/x-protobuf")
_CHECKS: tuple[Callable[[Celery], Iterator[Finding]], ...] = (
    _default_change(
        "acknowledgement",
        "task_acks_late",
        "a message is acknowledged after its task (task_acks_late = {new}): the task of a killed worker runs "
        "again, so it must bear that",
    ),
    _default_change(
        "prefetch",
        "worker_prefetch_multiplier",
        "a worker fetches {new} message for each of its processes, not 4, so that priorities hold",
    ),
    _default_change(
        "time limit", "task_time_limit", "a task is ended after {new} s; give a longer one time_limit= of its own"
    ),
    _default_change("results", "result_expires", "results expire after {new} s, not after a day"),
    _serializer,
    _priorities,
    _expiry,
    _names,
    _queues,
    _eager,
    _broker,
)
