"""How Celery is set up for agents, below whatever a project sets itself: defaults, queues, transport options."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.serialization import prepare_accept_content

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.routing import agent_queue, driver_type, first_url
from waooaw_celery.settings import CELERY_DEFAULTS, KOMBU_REDIS_DEFAULTS, TRANSPORT_DEFAULTS
from waooaw_celery.transport.connection import ClaimingConnection


class AgentAMQP(AMQP):
    """Celery's queues, and those of the application's agents whatever a project sets itself; its connections."""

    @property
    def Connection(self) -> type[Connection]:  # type: ignore[override]  # noqa: N802 - Celery's own name
        """The class of connections to the broker."""
        claims: bool = self.app.claims  # type: ignore[attr-defined]  # an AgentApp
        return ClaimingConnection if claims else Connection

    def Queues(self, queues: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - Celery's own name
        """Return the queues that the worker consumes and that names stand for."""
        given = list(queues.values() if isinstance(queues, Mapping) else queues or ())
        agents: dict[str, list[str]] = self.app.agents  # type: ignore[attr-defined]  # an AgentApp
        every: Any = [*given, *map(agent_queue, agents)] or None
        return super().Queues(every, *args, **kwargs)


def add_defaults(sender: Any, source: Any, **_: Any) -> None:
    """Put our defaults just above Celery's own, so that whatever a project sets itself wins.

    (``Celery.add_defaults`` would put them above a configuration object's.)
    """
    defaults = dict(CELERY_DEFAULTS)
    source.defaults.insert(-1, defaults)
    source.maps.insert(-1, defaults)
    if sender.agents:
        # Ordinary tasks, and Celery's own for chords, are run by the worker too, which consumes only this queue.
        defaults["task_default_queue"] = agent_queue(next(iter(sender.agents))).name
    url = first_url(source.broker_url)
    if url is not None and url.startswith("redis"):
        defaults["result_backend"] = url


def transport_options(conf: Any, claims: bool, url: str | None = None) -> dict[str, Any]:
    """Return the options of a broker's transport: a project's own, and ours for what it does not say.

    Args:
        conf: Celery's configuration.
        claims: whether our transport carries messages on Redis, and not Kombu's.
        url: the broker's URL; None: the configured one.
    """
    driver = ""
    with suppress(ConfigurationError):  # Celery prints the broker before the worker's check can refuse it
        driver = driver_type(first_url(url or conf.broker_url) or "")
    ours = dict(TRANSPORT_DEFAULTS.get(driver, {}))
    if driver == "redis":
        accepted = {"accept_content_types": tuple(sorted(prepare_accept_content(conf.accept_content) or ()))}
        ours |= accepted if claims else KOMBU_REDIS_DEFAULTS
    return {**ours, **(conf.broker_transport_options or {})}
