"""Celery's settings that each publish and each result needs, read once and again when one of them was changed."""

from __future__ import annotations

from typing import Any, NamedTuple

_NAMES = (
    "task_send_sent_event",
    "task_protocol",
    "task_serializer",
    "task_compression",
    "result_backend",
    "result_compression",
    "result_extended",
    "broker_pool_acquire_timeout",
    "task_always_eager",
)


class PublishSettings(NamedTuple):
    """The settings, named as in Celery without ``task_``.

    Attributes:
        send_sent_event: whether Celery sends an event for each task that is published.
        protocol: the version of the message protocol.
        serializer: name of the format of bodies.
        compression: name of their codec, or None.
        result_backend: URL of the result backend, or None.
        result_compression: name of the codec of results; None: that of bodies.
        result_extended: whether results are stored with the facts of their messages.
        pool_timeout: seconds for which a publish waits for a connection; None: for ever.
        always_eager: whether ``.delay`` runs a task in place.
    """

    send_sent_event: bool
    protocol: int
    serializer: str
    compression: str | None
    result_backend: str | None
    result_compression: str | None
    result_extended: bool
    pool_timeout: float | None
    always_eager: bool


class SettingsReader:
    """Reads the settings of an application. To look one up takes Celery several mappings and names.

    Args:
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._known: tuple[Any, Any, PublishSettings] | None = None

    def read(self) -> PublishSettings:
        """Return the present settings."""
        conf = self._app.conf
        changes = conf.maps[0]
        # A setting may have several names, so a new entry of any name counts as a change.
        state = len(changes), *map(changes.get, _NAMES)
        if self._known is None or self._known[0] is not conf or self._known[1] != state:
            self._known = conf, state, PublishSettings(*(getattr(conf, name) for name in _NAMES))
        return self._known[2]
