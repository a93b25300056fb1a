"""Connects an application to servers in memory for the time of a test, and gives it back as it was."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.celery_configuration import URL_SETTINGS
from waooaw_celery.app.components import Components
from waooaw_celery.testing.memory.broker import MemoryBroker
from waooaw_celery.testing.memory.results import BACKEND, MemoryResults, keep_results
from waooaw_celery.testing.memory.transport import broker_url

#: What the code of agents adds to its application.
_REGISTERED = ("agents", "capabilities", "identities", "declarations", "subscribed", "workflows")
#: The sender of what a test sends itself, where the application has none.
SENDER = "test"

_numbers = itertools.count(1)
_free_names: list[str] = []


@contextmanager
def reachable(broker: MemoryBroker) -> Iterator[str]:
    """Yield the URL under which the applications of this process reach a broker."""
    name = _free_names.pop() if _free_names else f"broker-{next(_numbers)}"
    try:
        yield broker_url(name, broker)
    finally:
        _free_names.append(name)


@contextmanager
def connected(app: AgentApp, url: str, results: MemoryResults, folder: Path) -> Iterator[None]:
    """Connect an application to servers in memory.

    The variables of the environment that would win over the configuration are hidden meanwhile. What is registered
    in the application meanwhile, such as stubs, is removed at the end.

    Args:
        app: the application.
        url: the URL of its broker.
        results: the results of its requests.
        folder: a folder with a ledger, ``ledger.db``.
    """
    settings: dict[str, Any] = {
        "broker_url": url,
        "broker_read_url": None,
        "broker_write_url": None,
        "broker_transport_options": {},
        "result_backend": BACKEND,
        "task_always_eager": False,
        "waooaw_database_url": f"sqlite:///{folder / 'ledger.db'}",
        "waooaw_redis_url": None,
        "waooaw_spool_folder": str(folder / "spool"),
        "waooaw_audit_mode": "strict",
        "waooaw_allow_unordered": True,
        "waooaw_rate_limit_storage": "memory",
    }
    (folder / "spool").mkdir(mode=0o700, exist_ok=True)
    keep_results(app, results)
    with ExitStack() as stack:
        stack.enter_context(_environment_without(settings))
        stack.enter_context(_registrations(app))
        stack.enter_context(_configuration(app, settings))
        stack.callback(keep_results, app, None)
        yield


@contextmanager
def _configuration(app: AgentApp, settings: Mapping[str, Any]) -> Iterator[None]:
    """Change the configuration and the components of an application, and restore both."""
    conf: Any = app.conf
    components, changes = app.components, dict(conf.changes)
    _forget_connections(app)
    for setting, value in settings.items():
        conf[setting] = value
    if conf.get("waooaw_sender") is None and "WAOOAW_SENDER" not in os.environ:
        conf["waooaw_sender"] = SENDER
    app.components = Components(app)
    try:
        yield
    finally:
        app.components.finish()
        app.close()
        conf.changes.clear()
        conf.changes.update(changes)
        _forget_connections(app)
        app.components = components


def _forget_connections(app: Any) -> None:
    """Have Celery make its connections, queues and result backend anew when they are needed."""
    app._pool = None
    app._backend_cache = None
    vars(app._local).pop("backend", None)
    app.__dict__.pop("amqp", None)  # a cached property


@contextmanager
def _registrations(app: AgentApp) -> Iterator[None]:
    """Remove at the end what was registered meanwhile."""
    registered = {name: _copied(getattr(app, name)) for name in _REGISTERED}
    tasks = set(app.tasks)
    try:
        yield
    finally:
        for name, value in registered.items():
            setattr(app, name, value)
        for name in set(app.tasks) - tasks:
            app.tasks.pop(name)


def _copied(value: Any) -> Any:
    return {key: copy(each) for key, each in value.items()} if isinstance(value, dict) else list(value)


@contextmanager
def _environment_without(settings: Mapping[str, Any]) -> Iterator[None]:
    names = [name.upper() for name in settings if name.startswith("waooaw_")]
    names += [f"CELERY_{name.upper()}" for name in URL_SETTINGS]
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
