"""The `waooaw_*` keys of `app.conf`, their environment variables `WAOOAW_*`, and Celery's own defaults here."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.message import RetentionPolicy
from waooaw_celery.values import check_agent_name
from waooaw_celery.wire.caps import MIB

PREFIX = "waooaw_"
#: Variables with our prefix that are no settings of an app: the app of the command line, and the tests' servers.
_OTHER_VARIABLES = ("WAOOAW_APP", "WAOOAW_TEST_")

#: What is never shown.
_SECRETS = frozenset({"encryption_keys"})
#: Kubernetes sets such variables for every service, and one may be called waooaw-something.
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")


def _split(value: object) -> object:
    """Read ``a, b`` from the environment as a list."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _json(value: object) -> object:
    """Read a JSON object from the environment."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f'it is written as JSON, such as {{"worker-1": "10/second"}} ({error})') from error


def _pairs(value: object) -> object:
    """Read ``a=b, c=d`` from the environment as a mapping."""
    names = _split(value)
    return dict(name.partition("=")[::2] for name in names) if isinstance(value, str) else names  # type: ignore[attr-defined]


def _crontab(value: str) -> str:
    """Check a crontab's five fields."""
    if len(value.split()) != 5:
        raise ValueError("a crontab has five fields, such as 17 3 * * *")
    return value


class AuditMode(StrEnum):
    """When a sender goes on: with its message in the ledger, or on its way there."""

    STRICT = "strict"
    BATCHED = "batched"


class RedisTransport(StrEnum):
    """What carries messages on Redis."""

    WAOOAW = "waooaw"
    KOMBU = "kombu"


class RateLimitStorage(StrEnum):
    """Where it is counted what agents send."""

    REDIS = "redis"
    MEMORY = "memory"


class OnStall(StrEnum):
    """What a worker does that has stalled."""

    EXIT = "exit"
    LOG = "log"


AgentName = Annotated[str, AfterValidator(check_agent_name)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class WaooawSettings(BaseModel):
    """What can be set. Each field is the key ``waooaw_<field>`` and the variable ``WAOOAW_<FIELD>``.

    The environment wins over ``app.conf``, as it does for Celery's own ``CELERY_BROKER_URL``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Agents known without a worker of theirs having started yet; comma-separated in the environment.
    agents: Annotated[tuple[AgentName, ...], BeforeValidator(_split)] = ()
    #: Who speaks when no agent does: the name for messages sent from a script, a web application or beat.
    sender: AgentName | None = None
    #: Seconds after which a message that nobody began is never handled, unless the message says otherwise.
    ttl_seconds: Seconds | None = 300.0
    #: Seconds after which an event that a subscriber has not begun is no longer handled by it; None: never, so
    #: that it reaches whoever was away for however long.
    event_ttl_seconds: Seconds | None = None
    #: Seconds that a request waits, unless the request says otherwise.
    request_timeout: Seconds = 30.0
    #: Where agents and receipts are kept; None: the result backend, or else the broker, when it is Redis.
    redis_url: str | None = None
    #: The ledger's database, such as postgresql://user@host/name or sqlite:////path; None: no ledger, and the
    #: receipts are kept in Redis for a while.
    database_url: str | None = None
    #: How long the ledger keeps a message that does not say so itself.
    retention: RetentionPolicy = RetentionPolicy.DAYS_90
    #: ``strict``: what is not in the ledger is not published, and the end of a message is there before it is
    #: acknowledged. ``batched``: both are on their way, for throughput.
    audit_mode: AuditMode = AuditMode.STRICT
    #: A folder for what waits while the ledger's database is away; None: one among the system's temporary files.
    spool_folder: str | None = None
    #: Seconds after which a message that was begun, and of whose end no worker told, counts as lost.
    lost_seconds: Seconds = 3600.0
    #: When the ledger is purged, as crontab writes it: minute, hour, day of month, month, day of week; in UTC.
    purge_at: Annotated[str, AfterValidator(_crontab)] = "17 3 * * *"
    #: Seconds for which a receipt is kept without a ledger.
    receipt_seconds: Seconds = 86_400.0
    #: Seconds between two signs of life of an agent's worker.
    heartbeat_seconds: Seconds = 5.0
    #: Seconds without progress, while there is work, after which a worker counts as stalled.
    stall_seconds: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0
    #: What a stalled worker does: ``exit``, so that its supervisor starts a new one, or ``log`` only.
    on_stall: OnStall = OnStall.EXIT
    #: Seconds between two sweeps of expired messages.
    sweep_seconds: Seconds = 30.0
    #: Seconds between two looks for messages that the broker lost.
    recover_seconds: Seconds = 30.0
    #: Seconds for which a message must have been in the ledger, with nothing heard of it, before it may count as
    #: lost.
    recover_after: Seconds = 60.0
    #: What carries messages on Redis: ``waooaw``, with an atomic claim, leases and guards; or Kombu's own.
    redis_transport: RedisTransport = RedisTransport.WAOOAW
    #: How many dead letters the broker keeps, about: the oldest make room for new ones.
    dead_letters_max: Positive = 100_000
    #: How often a handler that does not say so itself is tried again when it raises.
    retries: Annotated[int, Field(ge=0)] = 0
    #: How often handlers may give a message back with ``Reject(requeue=True)``; the next time it has failed.
    requeue_limit: Annotated[int, Field(ge=0)] = 8
    #: What each agent may send, such as ``10/second; 100/hour burst 20``; ``unlimited``: only agents with a quota
    #: of their own are limited; None: nobody is, and nothing is counted.
    rate_limit: Any = None
    #: What single agents may send, by name; JSON in the environment.
    rate_limits: Annotated[dict[AgentName, Any], BeforeValidator(_json)] = Field(default_factory=dict)
    #: Share of each limit that only URGENT messages may use.
    urgent_reserve: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    #: Where it is counted: ``redis``, for all processes, or ``memory``, for each by itself.
    rate_limit_storage: RateLimitStorage = RateLimitStorage.REDIS
    #: Let messages pass when their limit cannot be checked, instead of refusing them.
    rate_limit_fail_open: bool = False
    #: Bodies of more bytes than this are packed when that makes them a tenth smaller.
    compress_above: Annotated[int, Field(ge=0)] = 1024
    #: Format and codec of what is sent to an agent, where it is not the application's ``task_serializer`` and
    #: ``task_compression``; ``agent=msgpack, other=json`` in the environment.
    agent_serializers: Annotated[dict[str, str], BeforeValidator(_pairs)] = Field(default_factory=dict)
    agent_compressions: Annotated[dict[str, str], BeforeValidator(_pairs)] = Field(default_factory=dict)
    #: Codecs that are unpacked; what is packed with another cannot be read.
    accept_codecs: Annotated[tuple[str, ...], BeforeValidator(_split)] = ("zlib", "real-gzip", "zstd")
    #: Keys of the codec ``aes-gcm``, each ``id=KEY`` with 32 bytes in base64; the first encrypts, all decrypt.
    encryption_keys: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    #: Largest body as it travels, largest body unpacked, largest headers; in bytes.
    max_body_bytes: Positive = 16 * MIB
    max_expanded_bytes: Positive = 16 * MIB
    max_header_bytes: Positive = 64 * 1024
    #: Deepest nesting of a body, of which three levels are Celery's, and most values in it.
    max_depth: Annotated[int, Field(ge=8, le=90)] = 80
    max_nodes: Positive = 250_000
    #: Accept a Redis that removes whole queues when its memory is full.
    allow_eviction: bool = False
    #: Accept a broker that does not order messages by priority.
    allow_unordered: bool = False

    @property
    def limited(self) -> bool:
        """Whether what agents send is counted."""
        return self.rate_limit is not None or bool(self.rate_limits)

    @classmethod
    def read(
        cls, conf: Mapping[str, Any], namespace: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> WaooawSettings:
        """Read the settings from Celery's configuration and the environment.

        Args:
            conf: Celery's configuration.
            namespace: the prefix given to ``config_from_object``: with ``CELERY``, the key
                ``CELERY_WAOOAW_SENDER`` is ours too.
            environ: the environment.

        Raises:
            ConfigurationError: a key is unknown (the nearest known one is named) or a value is wrong.
        """
        prefixes = (PREFIX, f"{namespace}_{PREFIX}".lower())
        values = {key.lower().rpartition(PREFIX)[2]: conf[key] for key in conf if key.lower().startswith(prefixes)}
        _check_names(values, "setting", PREFIX)
        variables = {
            name.removeprefix(PREFIX.upper()).lower(): value
            for name, value in environ.items()
            if name.startswith(PREFIX.upper())
            and not name.startswith(_OTHER_VARIABLES)
            and not _KUBERNETES.search(name)
        }
        _check_names(variables, "environment variable", PREFIX.upper())
        try:
            return cls.model_validate(values | variables)
        except ValidationError as error:
            raise ConfigurationError(_sentence(error, set(variables))) from error


def _check_names(names: Iterable[str], what: str, prefix: str) -> None:
    known = list(WaooawSettings.model_fields)
    for name in names:
        if name not in known:
            near = [key for key in known if name in key] or difflib.get_close_matches(name, known, cutoff=0.5)
            shown = [name.upper() if prefix.isupper() else name for name in (name, *(near[:1] or known))]
            hint = f"did you mean {prefix}{shown[1]}?" if near else f"known are {', '.join(sorted(shown[1:]))}"
            raise ConfigurationError(f"unknown {what} {prefix}{shown[0]}: {hint}")


def _sentence(error: ValidationError, from_environment: set[str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    shown = f"WAOOAW_{name.upper()}" if name in from_environment else f"{PREFIX}{name}"
    value = "a secret" if name in _SECRETS else f"{first['input']!r:.80}"
    return f"{shown}: {first['msg'].removeprefix('Value error, ')} (it is {value})"


#: Celery's settings that every app starts from; a project's own configuration overrides each of them.
CELERY_DEFAULTS: dict[str, Any] = {
    # Nothing is lost: a message is acknowledged after it was handled, and one whose worker process was killed is
    # published again, at most `max_retries` times. (The older task_reject_on_worker_lost would loop for ever.)
    "task_acks_late": True,
    "task_reject_on_worker_lost": False,
    "task_retry_on_worker_lost": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": True,
    # With more than one message fetched ahead, an URGENT one would wait behind LOW ones already fetched.
    "worker_prefetch_multiplier": 1,
    # JSON is written; what carries data only is read. Pickle would let whoever writes to a queue run code.
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "accept_content": ["json", "msgpack", "protobuf"],
    "result_accept_content": ["json", "msgpack", "protobuf"],
    # What cannot be read is told to the ledger, and not to the log only.
    "worker_consumer": "waooaw_celery.worker.consumer:AgentConsumer",
    # Answers are kept an hour for callers that fetch them late.
    "result_expires": 3600,
    # Bounded waiting: Celery's own defaults retry a dead result backend for 20 s, and wait for ever for a pool.
    "result_backend_transport_options": {"retry_policy": {"max_retries": 2, "interval_start": 0.1}},
    "redis_socket_connect_timeout": 2.0,
    "redis_socket_timeout": 3.0,
    "task_publish_retry_policy": {
        "max_retries": 2,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    "broker_connection_timeout": 2.0,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # What Redis refuses for a while, when its disk is full or it became a replica, does not end the worker.
    "broker_channel_error_retry": True,
    "broker_pool_acquire_timeout": 5.0,
    # A handler that hangs is ended; a longer one says so with its own time_limit. There is no soft limit: with
    # one, Celery would not look at a hard limit that is shorter.
    "task_time_limit": 300,
    "timezone": "UTC",
}

#: Options of the broker's transport, by the driver type that Kombu gives it.
TRANSPORT_DEFAULTS: dict[str, dict[str, Any]] = {
    "redis": {
        # What a worker holds is handed out again when it has not renewed it for so long: when it was killed. It is
        # renewed every 3 s, so that a worker that stands still for 10 s keeps it.
        "visibility_timeout": 13.5,
        # A message of a killed worker comes back within a second of the timeout.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # A broker that froze is noticed: without these a publish would block for ever.
        "socket_timeout": 3.0,
        "socket_connect_timeout": 2.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
    "amqp": {
        # Without confirms, RabbitMQ drops what it cannot take and the publish still returns. (The door asks for
        # the return of what has no queue as well.)
        "confirm_publish": True,
    },
}

#: The same for connections over which messages are published, and no others: a consumer waits for the next message
#: however long that takes.
PUBLISH_DEFAULTS: dict[str, dict[str, Any]] = {
    # A broker that froze, or that blocks publishers since its memory is full, is noticed.
    "amqp": {"read_timeout": 3.0, "write_timeout": 3.0},
}

#: What is different where Kombu's own transport carries messages on Redis: it renews nothing, so the timeout is
#: above the hard time limit (300) plus the longest pause before a retry (600, Celery's retry_backoff_max).
KOMBU_REDIS_DEFAULTS: dict[str, Any] = {"visibility_timeout": 960, "unacked_restore_interval": 5}
