"""The `waooaw_*` keys of `app.conf` and their environment variables `WAOOAW_*`.

The module is longer than 300 lines because each setting has its line of documentation here, in one place.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache, partial
from typing import Annotated, Any, Self, get_type_hints

from waooaw_celery.errors import ConfigurationError, SettingOverridden
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.urls import check_url, shown_url
from waooaw_celery.messages.validation import check_agent_name, check_identity
from waooaw_celery.wire.caps import MIB

PREFIX = "waooaw_"
#: Environment variables with our prefix that are not settings: options of the command line, the tests' servers.
_OTHER_VARIABLES = ("WAOOAW_APP", "WAOOAW_UTC", "WAOOAW_TEST_")

#: Settings whose values never appear in an error.
_SECRETS = frozenset({"encryption_keys", "redis_url", "database_url", "reference_store"})
#: Kubernetes sets such variables for every service, and a service may be called waooaw-something.
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")
#: The path of a function: a module, a colon or a point, and a name.
_FUNCTION_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[:.][^\W\d]\w*")


class AuditMode(StrEnum):
    """When a send returns: after its message is in the ledger, or while the message is on its way there."""

    STRICT = "strict"
    BATCHED = "batched"


class RedisTransport(StrEnum):
    """What carries messages on Redis."""

    WAOOAW = "waooaw"
    KOMBU = "kombu"


class RateLimitStorage(StrEnum):
    """Where sent messages are counted."""

    REDIS = "redis"
    MEMORY = "memory"


class ArgumentChecks(StrEnum):
    """Where the arguments of a request are checked against the types of the method's parameters."""

    BOTH = "both"
    ARRIVAL = "arrival"
    OFF = "off"


class LogFormat(StrEnum):
    """How the log of a process is written."""

    TEXT = "text"
    JSON = "json"


class OnStall(StrEnum):
    """What a stalled worker does."""

    EXIT = "exit"
    LOG = "log"


# --- how a value is read: each function returns the setting's value, or raises ValueError with what is expected


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("it must be a string")


def _flag(value: object) -> bool:
    word = str(value).lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("it must be true or false")


def _number(value: object, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> float:
    """Read a finite number, given as one or as text."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, str | int | float) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("it must be a number")
    if number <= above:
        raise ValueError(f"it must be greater than {above:g}")
    if number < least:
        raise ValueError(f"it must be at least {least:g}")
    if number > most:
        raise ValueError(f"it must be at most {most:g}")
    return number


def _whole(value: object, *, least: int = 1, most: float = math.inf) -> int:
    """Read a whole number, given as one or as text."""
    number = _number(value, least=least, most=most)
    if not number.is_integer():
        raise ValueError("it must be a whole number")
    return int(number)


def _names(value: object) -> tuple[str, ...]:
    """Read several texts, or ``a, b`` from the environment."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_text(name) for name in value)
    raise ValueError("it must be a list of strings")


def _agent_name(value: object) -> str:
    return check_agent_name(_text(value))


def _identity(value: object) -> str:
    return check_identity(_text(value))


def _agent_names(value: object) -> tuple[str, ...]:
    return tuple(check_agent_name(name) for name in _names(value))


def _pairs(value: object) -> dict[str, str]:
    """Read a mapping of texts, or ``a=b, c=d`` from the environment."""
    if isinstance(value, str):
        return dict(name.partition("=")[::2] for name in _names(value))
    if isinstance(value, Mapping):
        return {_text(name): _text(choice) for name, choice in value.items()}
    raise ValueError("it must be a mapping of strings to strings")


def _quotas(value: object) -> dict[str, Any]:
    """Read a mapping by agent, or a JSON object from the environment."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'it must be a JSON object, such as {{"worker-1": "10/second"}} ({error})') from error
    if isinstance(value, Mapping):
        return {_agent_name(name): quota for name, quota in value.items()}
    raise ValueError("it must be a mapping of agent names to limits")


def _weights(value: object) -> dict[str, float]:
    """Read a mapping of agent names to numbers, or ``a=2, b=0.5`` from the environment."""
    if isinstance(value, str):
        value = _pairs(value)
    if isinstance(value, Mapping):
        return {_agent_name(name): _number(weight, least=0.01, most=1000) for name, weight in value.items()}
    raise ValueError("it must be a mapping of agent names to numbers from 0.01 to 1000")


def _limits_in_flight(value: object) -> dict[str, int]:
    """Read a mapping of agents, or ``*``, to whole numbers from 1, or ``a=5, *=10`` from the environment."""
    if isinstance(value, str):
        value = dict(name.partition("=")[::2] for name in _names(value))
    if isinstance(value, Mapping):
        limits = {}
        for name, limit in value.items():
            try:
                limits[name if name == "*" else _agent_name(name)] = _whole(limit)
            except ValueError as error:
                raise ValueError(f"the limit of {name!r:.80} is {limit!r:.80}: {error}") from error
        return limits
    raise ValueError("it must be a mapping of agents, or '*' for every other one, to numbers")


def _function(value: object) -> object:
    """Read a function, or the path of one, such as ``my_agents.rules:is_failure``."""
    if callable(value) or (isinstance(value, str) and _FUNCTION_PATH.fullmatch(value)):
        return value
    raise ValueError("it must be a function, or the path of one, such as my_agents.rules:is_failure")


def _crontab(value: object) -> str:
    if len(_text(value).split()) == 5:
        return _text(value)
    raise ValueError("it must be a crontab of five fields, such as 17 3 * * *")


def _one_of(kind: type[StrEnum]) -> Callable[[object], StrEnum]:
    def read(value: object) -> StrEnum:
        try:
            return kind(str(value))
        except ValueError:
            raise ValueError(f"it must be one of {', '.join(kind)}") from None

    return read


def _or_none(read: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else read(value)


Text = Annotated[str | None, _or_none(_text)]
Flag = Annotated[bool, _flag]
Seconds = Annotated[float, partial(_number, above=0)]
SecondsOrNever = Annotated[float | None, _or_none(partial(_number, above=0))]
ShareOrUnlimited = Annotated[float | None, _or_none(partial(_number, least=0))]
Count = Annotated[int, _whole]
CountOrNone = Annotated[int | None, _or_none(_whole)]
CountOrZero = Annotated[int, partial(_whole, least=0)]
Names = Annotated[tuple[str, ...], _names]
Pairs = Annotated[dict[str, str], _pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaooawSettings:
    """Every setting. Each field is the key ``waooaw_<field>`` and the environment variable ``WAOOAW_<FIELD>``.

    The environment wins over ``app.conf``, as it does for Celery's own ``CELERY_BROKER_URL``. A
    ``SettingOverridden`` warning names both values where they differ.
    """

    #: Agents that are known before their worker first starts; comma-separated in the environment.
    agents: Annotated[tuple[str, ...], _agent_names] = ()
    #: Sender of the messages that no agent sends: those of a script, a web application or beat.
    sender: Annotated[str | None, _or_none(_agent_name)] = None
    #: The identity of this sender, such as a DID or an e-mail address; None: it has none.
    sender_identity: Annotated[str | None, _or_none(_identity)] = None
    #: Seconds until a message that no worker has begun expires, unless the message sets its own; None: never.
    ttl_seconds: SecondsOrNever = 300.0
    #: Seconds until an event expires for a subscriber that has not begun it; None: never.
    event_ttl_seconds: SecondsOrNever = None
    #: Refuse to publish an event whose topic has no schema.
    require_schemas: Flag = False
    #: Seconds that a request waits for its result, unless the request sets its own timeout.
    request_timeout: Seconds = 30.0
    #: Redis that stores agents and receipts; None: the result backend or the broker, whichever is a Redis.
    redis_url: Text = None
    #: Database of the ledger, such as postgresql://user@host/name or sqlite:////path; None: no ledger, and
    #: receipts stay in Redis for ``receipt_seconds``.
    database_url: Text = None
    #: How long the ledger keeps a message that does not set its own retention.
    retention: Annotated[RetentionPolicy, _one_of(RetentionPolicy)] = RetentionPolicy.DAYS_90
    #: ``strict``: a message is committed to the ledger before it is published, and its outcome before it is
    #: acknowledged. ``batched``: a background writer commits both, for throughput.
    audit_mode: Annotated[AuditMode, _one_of(AuditMode)] = AuditMode.STRICT
    #: Whether the ledger records the answers of requests; without them it keeps only that they were answered.
    record_answers: Flag = True
    #: Whether a recorded answer includes the parts of a stream, up to ``max_body_bytes``; otherwise it has their
    #: number and their digest.
    record_stream_parts: Flag = False
    #: Folder of the spool, which holds rows while the ledger's database is away; None: a temporary folder.
    spool_folder: Text = None
    #: Seconds until a message whose handler began and never reported its outcome counts as lost.
    lost_seconds: Seconds = 3600.0
    #: When beat purges the ledger, as a crontab in UTC: minute, hour, day of month, month, day of week.
    purge_at: Annotated[str, _crontab] = "17 3 * * *"
    #: Seconds for which Redis keeps a receipt when there is no ledger.
    receipt_seconds: Seconds = 86_400.0
    #: Seconds between two heartbeats of an agent's worker.
    heartbeat_seconds: Seconds = 5.0
    #: Which of several agents with a capability gets a message: ``power_of_two``, ``least_loaded``,
    #: ``round_robin``, ``weighted``, ``random`` or ``sticky``.
    routing_policy: Annotated[str, _text] = "power_of_two"
    #: Where the arguments of a request are checked against the type hints of the method: ``both``, where it is
    #: sent and where it arrives; ``arrival``; or ``off``.
    check_arguments: Annotated[ArgumentChecks, _one_of(ArgumentChecks)] = ArgumentChecks.BOTH
    #: Seconds without progress, while there is work, after which a worker counts as stalled; at least 1.
    stall_seconds: Annotated[float, partial(_number, least=1)] = 60.0
    #: What a stalled worker does: ``exit``, so that its supervisor starts a new one, or ``log``.
    on_stall: Annotated[OnStall, _one_of(OnStall)] = OnStall.EXIT
    #: Port on which a worker serves ``/health/live``, ``/health/ready`` and ``/metrics``, and beat its health;
    #: 0: a free one; None: none is served.
    health_port: Annotated[int | None, _or_none(partial(_whole, least=0, most=65535))] = None
    #: Address on which it is served; ``0.0.0.0``: on all of this computer's.
    health_host: Annotated[str, _text] = "0.0.0.0"  # noqa: S104 - a probe comes from another computer
    #: URL of an OTLP/HTTP endpoint, such as ``http://collector:4318/v1/traces``, to which workers send spans;
    #: None: a tracer provider that the program has set up gets them.
    traces_endpoint: Text = None
    #: Seconds that messages may wait before a worker that is scaled automatically grows its pool for them.
    autoscale_age: Seconds = 1.0
    #: Seconds between two sweeps of expired messages.
    sweep_seconds: Seconds = 30.0
    #: Seconds between two runs of the recovery of messages that the broker lost.
    recover_seconds: Seconds = 30.0
    #: Seconds that a message has been in the ledger without news before recovery looks for it.
    recover_after: Seconds = 60.0
    #: Transport on Redis: ``waooaw``, with an atomic claim, leases and guards; or ``kombu``, Kombu's own.
    redis_transport: Annotated[RedisTransport, _one_of(RedisTransport)] = RedisTransport.WAOOAW
    #: Approximate number of dead letters that the broker keeps; the oldest are removed first.
    dead_letters_max: Count = 100_000
    #: The most messages that may wait in an agent's queue, about; further ones are refused with QueueFull. None:
    #: no limit.
    max_waiting: CountOrNone = None
    #: The most messages of one sender that may wait in an agent's queue, about; further ones are refused with
    #: QueueFull. On RabbitMQ it needs a ledger, and counts those that run or are delayed too. None: no limit.
    max_waiting_per_sender: CountOrNone = None
    #: Whether each sender's messages wait in a flow of their own, so that nobody waits for the many messages of
    #: another one. Only on Redis; Celery's own workers cannot consume such queues.
    fair_queues: Flag = False
    #: How many turns the messages of a sender get for each one of another, by name, such as ``planner=3``; 1 for
    #: all others.
    fair_weights: Annotated[dict[str, float], _weights] = field(default_factory=dict)
    #: Share of a worker's claims that begin with the least urgent messages, from 0 to 0.5, so that URGENT ones
    #: never hold up the others for ever. Only on Redis.
    priority_share: Annotated[float, partial(_number, least=0, most=0.5)] = 0.0
    #: RetryPolicy of a handler that does not set its own.
    retries: CountOrZero = 0
    #: Retries of requests that a worker process may make for each request that it handles, and a hundred more in
    #: ten seconds; None: as many as the retry policies of its handlers allow.
    retry_budget: ShareOrUnlimited = 0.2
    #: Failed requests to an agent, within ``breaker_window``, that open its circuit breaker, if at least half of
    #: the requests failed; 0: there are no circuit breakers of agents.
    breaker_failures: CountOrZero = 10
    #: Seconds for which a circuit breaker counts requests.
    breaker_window: Seconds = 30.0
    #: Seconds for which a circuit breaker is open before one request is let through as a probe.
    breaker_open_seconds: Seconds = 10.0
    #: Function that returns whether an error of a request counts as a failure of its agent, or its path; None: see
    #: ``store/resilience/failures.py``.
    breaker_is_failure: Annotated[Any, _or_none(_function)] = None
    #: How many requests of one agent to another may be open at once, by the requested agent; ``*`` stands for
    #: every other one. ``worker-1=5, *=20`` in the environment.
    max_in_flight: Annotated[dict[str, int], _limits_in_flight] = field(default_factory=dict)
    #: How often a handler may give a message back with ``Reject(requeue=True)``; the next time, the message fails.
    requeue_limit: CountOrZero = 8
    #: Limit of each agent, such as ``10/second; 100/hour burst 20``; ``unlimited``: only agents with a quota of
    #: their own are limited; None: no agent is limited and nothing is counted.
    rate_limit: Any = None
    #: Limits of single agents, by name; a JSON object in the environment.
    rate_limits: Annotated[dict[str, Any], _quotas] = field(default_factory=dict)
    #: Share of each limit that is reserved for URGENT messages, from 0 to 0.9.
    urgent_reserve: Annotated[float, partial(_number, least=0, most=0.9)] = 0.0
    #: Where sent messages are counted: ``redis``, for all processes together, or ``memory``, for each process.
    rate_limit_storage: Annotated[RateLimitStorage, _one_of(RateLimitStorage)] = RateLimitStorage.REDIS
    #: Send messages whose limit cannot be checked, instead of refusing them.
    rate_limit_fail_open: Flag = False
    #: Bytes above which a body is compressed, when that makes it at least a tenth smaller.
    compress_above: CountOrZero = 1024
    #: Bytes above which a payload is kept in a store and travels by reference; what counts is its size as it would
    #: travel, compressed. None: every payload travels with its message.
    reference_above: CountOrNone = None
    #: URL of the store of large payloads, which fsspec opens, such as file:///srv/payloads or s3://bucket/payloads;
    #: None: the ledger's database.
    reference_store: Text = None
    #: Serializer of the messages to single agents, instead of ``task_serializer``; ``agent=msgpack, other=json``
    #: in the environment.
    agent_serializers: Pairs = field(default_factory=dict)
    #: Compression of the messages to single agents, instead of ``task_compression``.
    agent_compressions: Pairs = field(default_factory=dict)
    #: Codecs that a worker decompresses; it refuses every other one.
    accept_codecs: Names = ("zlib", "real-gzip", "zstd")
    #: Keys of the codec ``aes-gcm``, each ``id=KEY`` with 32 bytes in base64; the first encrypts, all decrypt.
    encryption_keys: Names = ()
    #: Largest body on the wire, in bytes.
    max_body_bytes: Count = 16 * MIB
    #: Largest body after decompression, in bytes.
    max_expanded_bytes: Count = 16 * MIB
    #: Largest headers, in bytes.
    max_header_bytes: Count = 64 * 1024
    #: Deepest nesting of a body; three of these levels are Celery's.
    max_depth: Annotated[int, partial(_whole, least=8, most=90)] = 80
    #: Most values in a body.
    max_nodes: Count = 250_000
    #: Workflows that one process runs at the same time; those that only wait do not count.
    workflow_concurrency: Count = 100
    #: Seconds for which a workflow that waits stays in memory.
    workflow_idle_seconds: Seconds = 5.0
    #: Seconds after which another process takes over the workflows of a process that was lost; at least 1.
    workflow_lease_seconds: Annotated[float, partial(_number, least=1)] = 15.0
    #: Seconds between two looks for workflows that are due.
    workflow_poll_seconds: Seconds = 1.0
    #: Show arguments, results and the texts of errors in the worker's log, in Celery's events (Flower) and in
    #: ``celery inspect``. Only for development.
    log_payloads: Flag = False
    #: How workers, beat and Celery's other commands write their log: ``text``, or ``json``, one object a line.
    log_format: Annotated[LogFormat, _one_of(LogFormat)] = LogFormat.TEXT
    #: Accept a Redis broker that evicts keys when its memory is full.
    allow_eviction: Flag = False
    #: Accept a broker that ignores priority.
    allow_unordered: Flag = False

    @property
    def limited(self) -> bool:
        """Whether sent messages are counted."""
        return self.rate_limit is not None or bool(self.rate_limits)

    @classmethod
    def read(
        cls, conf: Mapping[str, Any], namespace: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Read the settings from Celery's configuration and the environment.

        Args:
            conf: Celery's configuration.
            namespace: the prefix given to ``config_from_object``: with ``CELERY``, the key
                ``CELERY_WAOOAW_SENDER`` is read too.
            environ: the environment.

        Raises:
            ConfigurationError: a key is unknown (the error names the nearest known one) or a value is wrong.
        """
        prefixes = (PREFIX, f"{namespace}_{PREFIX}".lower())
        values = {key.lower().rpartition(PREFIX)[2]: conf[key] for key in conf if key.lower().startswith(prefixes)}
        _check_names(values, "setting", PREFIX)
        variables = {
            name.removeprefix(PREFIX.upper()).lower(): value
            for name, value in environ.items()
            if name.startswith(PREFIX.upper())
            and not name.startswith(_OTHER_VARIABLES)
            and not _is_of_kubernetes(name, value)
        }
        _check_names(variables, "environment variable", PREFIX.upper())
        given = {
            name: _value(name, f"{PREFIX}{name}", value) for name, value in values.items() if name not in variables
        }
        for name, value in variables.items():
            variable = f"{PREFIX.upper()}{name.upper()}"
            given[name] = _value(name, variable, value)
            if name in values:
                warn_of_override(
                    variable, given[name], f"{PREFIX}{name}", _value(name, f"{PREFIX}{name}", values[name])
                )
        return cls(**given)


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Return whether Kubernetes has set a variable; a service may be called waooaw-health too."""
    setting = name.removeprefix(PREFIX.upper()).lower()
    is_setting = any(each.name == setting for each in fields(WaooawSettings))
    return bool(_KUBERNETES.search(name)) and (not is_setting or "://" in value)


def warn_of_override(variable: str, wins: object, setting: str, loses: object) -> None:
    """Warn that the environment and the code give one setting different values. The environment wins.

    Args:
        variable: the environment variable.
        wins: its value.
        setting: the setting in the code.
        loses: its value.

    Warns:
        SettingOverridden: the values differ. The text names both, without passwords and keys.
    """
    if wins == loses:
        return
    shown = [_shown(setting.removeprefix(PREFIX), value) for value in (wins, loses)]
    warnings.warn(
        f"{variable} in the environment ({shown[0]}) wins over {setting} in the code ({shown[1]}): "
        "remove one of them",
        SettingOverridden,
        stacklevel=2,
    )


def _shown(name: str, value: object) -> str:
    if name.endswith("_url") or name == "result_backend":
        return shown_url(value)
    return "not shown" if name in _SECRETS else f"{value!r:.80}"


@cache
def _readers() -> dict[str, tuple[Callable[[Any], Any], ...]]:
    hints = get_type_hints(WaooawSettings, include_extras=True)
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}


def _value(name: str, key: str, value: Any) -> Any:
    """Return the value of a setting that is given under a key, the setting's or the variable's name."""
    try:
        for read in _readers()[name]:
            value = read(value)
    except ValueError as error:
        shown = "invalid" if name in _SECRETS else f"{value!r:.80}"
        raise ConfigurationError(f"{key} is {shown}: {error}") from error
    return check_url(key, value) if name.endswith("_url") and value is not None else value


def _check_names(names: Iterable[str], what: str, prefix: str) -> None:
    known = [each.name for each in fields(WaooawSettings)]
    for name in names:
        if name not in known:
            near = [key for key in known if name in key] or difflib.get_close_matches(name, known, cutoff=0.5)
            shown = [name.upper() if prefix.isupper() else name for name in (name, *(near[:1] or known))]
            hint = f"did you mean {prefix}{shown[1]}?" if near else f"known: {', '.join(sorted(shown[1:]))}"
            raise ConfigurationError(f"unknown {what} {prefix}{shown[0]}: {hint}")
