"""Configure Celery for agents: defaults, queues, producers, transport options. A project overrides each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from typing import Any

from celery.app.amqp import AMQP, Queues
from celery.utils.collections import ConfigurationView
from kombu import Connection
from kombu.serialization import prepare_accept_content

from waooaw_celery.app.celery_defaults import (
    CELERY_DEFAULTS,
    KOMBU_REDIS_DEFAULTS,
    PUBLISH_DEFAULTS,
    TRANSPORT_DEFAULTS,
)
from waooaw_celery.broker.connection import BoundedConnection, ClaimConnection
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import agent_queue, driver_type, first_url
from waooaw_celery.messages.urls import check_urls
from waooaw_celery.results.backend import BACKENDS
from waooaw_celery.settings import WaooawSettings, warn_of_override
from waooaw_celery.wire import encryption
from waooaw_celery.wire.caps import CAP_NAMES, Caps
from waooaw_celery.wire.codecs import find_codec, has_codec
from waooaw_celery.wire.packer import Packer
from waooaw_celery.wire.producer import PackingProducer, producer_class, producer_pool

#: Settings with URLs of servers. Each has a variable of Celery's, ``CELERY_<SETTING>``.
URL_SETTINGS = ("broker_url", "broker_read_url", "broker_write_url", "result_backend")
#: Other names in the code for the same settings, which Celery still reads.
_OTHER_NAMES = {
    "broker_url": ("BROKER_URL", "broker_host", "BROKER_HOST"),
    "broker_read_url": (),
    "broker_write_url": (),
    "result_backend": ("CELERY_RESULT_BACKEND",),
}


class SelectableQueues(Queues):
    """Celery's queues of an application, which know whether some of them were selected.

    Attributes:
        is_selected: whether the worker's option ``-Q`` says which queues it reads.
    """

    is_selected = False

    def select(self, include: Any) -> None:
        """Read only some of the queues."""
        self.is_selected = self.is_selected or bool(include)
        super().select(include)


class AgentAMQP(AMQP):
    """Celery's AMQP object, with the queues of the application's agents and with producers that use its packer."""

    queues_cls = SelectableQueues

    @property
    def Connection(self) -> type[Connection]:  # type: ignore[override]  # noqa: N802 - Celery's own name
        """The class of connections to the broker."""
        claims: bool = self.app.claims  # type: ignore[attr-defined]  # an AgentApp
        redis = (first_url(self.app.conf.broker_url) or "").startswith(("redis", "sentinel"))
        return BoundedConnection if redis and not claims else ClaimConnection

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


def check_server_urls(conf: Any) -> None:
    """Check the URLs of broker and result backend, which Celery and the drivers would read each in their own way.

    Args:
        conf: Celery's configuration.

    Raises:
        ConfigurationError: one of them cannot be read.
    """
    for setting in URL_SETTINGS:
        value = getattr(conf, setting)
        if setting != "result_backend" or (isinstance(value, str) and "://" in value):
            check_urls(setting, value)


def check_worker_urls(instance: Any, conf: Any, **_: Any) -> None:
    """Check the URLs before a worker connects (receiver of ``celeryd_init``).

    Raises:
        SystemExit: one of them cannot be read. It ends ``celery worker`` without a traceback.
    """
    if isinstance(instance.app.amqp, AgentAMQP):
        try:
            check_server_urls(conf)
        except ConfigurationError as error:
            raise SystemExit(f"Error: {error}") from None


def warn_of_overrides(conf: Any) -> None:
    """Warn of each of Celery's environment variables that wins over another value in the code.

    Args:
        conf: Celery's configuration.

    Warns:
        SettingOverridden: the two differ.
    """
    # Without the last two maps, which are this package's defaults and Celery's.
    code = ConfigurationView({}, conf.maps[:-2], prefix=conf.prefix)
    for setting in URL_SETTINGS:
        variable = f"CELERY_{setting.upper()}"
        wins, loses = os.environ.get(variable), code.first(setting, *_OTHER_NAMES[setting])
        if wins and loses:
            warn_of_override(variable, wins, setting, loses)


def make_packer(conf: Any, settings: WaooawSettings, *, bytes_become_base64: bool = False) -> Packer:
    """Return the packer of an application, and give this process its encryption keys.

    Args:
        conf: Celery's configuration.
        settings: the settings of the library.
        bytes_become_base64: whether the broker's transport writes bytes as base64, and text as it is.

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
    return Packer(caps, settings.compress_above, bytes_become_base64=bytes_become_base64)


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
    ours |= {name: getattr(caps, name) for name in CAP_NAMES}
    if driver == "redis" and not claims:
        ours |= KOMBU_REDIS_DEFAULTS
    elif driver == "redis" and max_dead_letters is not None:
        ours["dead_letters_max"] = max_dead_letters
    return {**ours, **(conf.broker_transport_options or {})}
