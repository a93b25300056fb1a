"""Configure Celery for agents: defaults, queues, producers, transport options. A project overrides each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.serialization import prepare_accept_content

from waooaw_celery.app.celery_defaults import (
    CELERY_DEFAULTS,
    KOMBU_REDIS_DEFAULTS,
    PUBLISH_DEFAULTS,
    TRANSPORT_DEFAULTS,
)
from waooaw_celery.broker.connection import ClaimConnection
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import agent_queue, driver_type, first_url
from waooaw_celery.results.backend import BACKENDS
from waooaw_celery.settings import WaooawSettings
from waooaw_celery.wire import encryption
from waooaw_celery.wire.caps import CAP_NAMES, Caps, active_caps
from waooaw_celery.wire.codecs import find_codec, has_codec
from waooaw_celery.wire.packer import Packer
from waooaw_celery.wire.producer import PackingProducer, producer_class, producer_pool


class AgentAMQP(AMQP):
    """Celery's AMQP object, with the queues of the application's agents and with producers that use its packer."""

    @property
    def Connection(self) -> type[Connection]:  # type: ignore[override]  # noqa: N802 - Celery's own name
        """The class of connections to the broker."""
        claims: bool = self.app.claims  # type: ignore[attr-defined]  # an AgentApp
        redis = (first_url(self.app.conf.broker_url) or "").startswith(("redis", "sentinel"))
        return Connection if redis and not claims else ClaimConnection

    _producer_pool: Any = None

    @property
    def producer_pool(self) -> Any:
        """The application's pool of producers. They encode bodies with its packer."""
        if self._producer_pool is None:
            timeout = self.app.conf.broker_pool_acquire_timeout
            self._producer_pool = producer_pool(self.app.pool, self.packer, timeout)
        return self._producer_pool

    @property
    def Producer(self) -> type[PackingProducer]:  # type: ignore[override]  # noqa: N802 - Celery's own name
        """The class of producers for a connection that the caller passes."""
        return producer_class(self.packer)

    @property
    def packer(self) -> Packer:
        """The packer that encodes the bodies of the application."""
        packer: Packer = self.app.packer  # type: ignore[attr-defined]  # an AgentApp
        return packer

    def Queues(self, queues: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - Celery's own name
        """Return the queues that the worker consumes, and that Celery finds by name."""
        given = list(queues.values() if isinstance(queues, Mapping) else queues or ())
        agents: dict[str, list[str]] = self.app.agents  # type: ignore[attr-defined]  # an AgentApp
        # Copies: Celery changes the exchange of a queue, and the whole process shares the queues of agents.
        all_queues: Any = [*given, *(copy(agent_queue(name)) for name in agents)] or None
        return super().Queues(all_queues, *args, **kwargs)


def add_defaults(sender: Any, source: Any, **_: Any) -> None:
    """Insert our defaults just above Celery's own, so that a project's settings override them.

    (``Celery.add_defaults`` would put them above a configuration object.)
    """
    defaults = dict(CELERY_DEFAULTS)
    sender.loader.override_backends = BACKENDS | sender.loader.override_backends
    source.defaults.insert(-1, defaults)
    source.maps.insert(-1, defaults)
    if sender.agents:
        # The worker consumes only this queue. It must also run ordinary tasks, and Celery's own tasks for chords.
        defaults["task_default_queue"] = agent_queue(next(iter(sender.agents))).name
    url = first_url(source.broker_url)
    if url is not None and url.startswith("redis"):
        defaults["result_backend"] = url


def make_packer(conf: Any, settings: WaooawSettings) -> Packer:
    """Return the packer of an application, and make this process accept the application's formats and sizes.

    Args:
        conf: Celery's configuration.
        settings: the settings of the library.

    Raises:
        ConfigurationError: a codec does not exist, or an encryption key is not valid.
    """
    encryption.enable(settings.encryption_keys)
    names = [*settings.accept_codecs, *([encryption.NAME] if settings.encryption_keys else [])]
    caps = Caps(
        max_body_bytes=settings.max_body_bytes,
        max_expanded_bytes=settings.max_expanded_bytes,
        max_header_bytes=settings.max_header_bytes,
        max_depth=settings.max_depth,
        max_nodes=settings.max_nodes,
        content_types=tuple(sorted(prepare_accept_content(conf.accept_content) or ())),
        # zstd is accepted where it is installed.
        codecs=tuple(sorted(find_codec(name).content_type for name in names if name != "zstd" or has_codec(name))),
    )
    active_caps.widen(caps)
    return Packer(caps, settings.compress_above)


def transport_options(
    conf: Any,
    claims: bool,
    caps: Caps,
    url: str | None = None,
    *,
    publishes: bool = False,
    max_dead_letters: int | None = None,
) -> dict[str, Any]:
    """Return the options of a broker's transport: the project's own, and our defaults for the others.

    Args:
        conf: Celery's configuration.
        claims: whether our own transport carries messages on Redis. False: Kombu's does.
        caps: the formats and sizes that are accepted.
        url: the broker's URL; None: the configured one.
        publishes: whether the connection publishes messages.
        max_dead_letters: how many dead letters Redis keeps. None: the transport's default.
    """
    driver = ""
    with suppress(ConfigurationError):  # Celery prints the broker before the worker's check can refuse it
        driver = driver_type(first_url(url or conf.broker_url) or "")
    ours = dict(TRANSPORT_DEFAULTS.get(driver, {}))
    if publishes:
        ours |= PUBLISH_DEFAULTS.get(driver, {})
    if driver == "redis" and not claims:
        ours |= KOMBU_REDIS_DEFAULTS
    else:
        ours |= {name: getattr(caps, name) for name in CAP_NAMES}
        if driver == "redis" and max_dead_letters is not None:
            ours["dead_letters_max"] = max_dead_letters
    return {**ours, **(conf.broker_transport_options or {})}
