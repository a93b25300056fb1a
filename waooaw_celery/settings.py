"""The `waooaw_*` keys of `app.conf` and their environment variables `WAOOAW_*`.

The module is longer than 300 lines because each setting has its line of documentation here, in one place.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Self, get_type_hints

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.wire.caps import MIB

PREFIX = "waooaw_"
#: Environment variables with our prefix that are not settings: the command line's application, the tests' servers.
_OTHER_VARIABLES = ("WAOOAW_APP", "WAOOAW_TEST_")

#: Settings whose values never appear in an error.
_SECRETS = frozenset({"encryption_keys"})
#: Kubernetes sets such variables for every service, and a service may be called waooaw-something.
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")


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


class OnStall(StrEnum):
    """What a stalled worker does."""

    EXIT = "exit"
    LOG = "log"


# --- how a value is read: each function returns the setting's value, or raises ValueError with what is expected


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("it must be a text")


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
    raise ValueError("it must be a list of texts")


def _agent_name(value: object) -> str:
    return check_agent_name(_text(value))


def _agent_names(value: object) -> tuple[str, ...]:
    return tuple(check_agent_name(name) for name in _names(value))


def _pairs(value: object) -> dict[str, str]:
    """Read a mapping of texts, or ``a=b, c=d`` from the environment."""
    if isinstance(value, str):
        return dict(name.partition("=")[::2] for name in _names(value))
    if isinstance(value, Mapping):
        return {_text(name): _text(choice) for name, choice in value.items()}
    raise ValueError("it must be a mapping of texts")


def _quotas(value: object) -> dict[str, Any]:
    """Read a mapping by agent, or a JSON object from the environment."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'it is written as JSON, such as {{"worker-1": "10/second"}} ({error})') from error
    if isinstance(value, Mapping):
        return {_agent_name(name): quota for name, quota in value.items()}
    raise ValueError("it must be a mapping from the name of an agent to its limit")


def _crontab(value: object) -> str:
    if len(_text(value).split()) == 5:
        return _text(value)
    raise ValueError("a crontab has five fields, such as 17 3 * * *")


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
Count = Annotated[int, _whole]
CountOrZero = Annotated[int, partial(_whole, least=0)]
Names = Annotated[tuple[str, ...], _names]
Pairs = Annotated[dict[str, str], _pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaooawSettings:
    """Every setting. Each field is the key ``waooaw_<field>`` and the environment variable ``WAOOAW_<FIELD>``.

    The environment wins over ``app.conf``, as it does for Celery's own ``CELERY_BROKER_URL``.
    """

    #: Agents that are known before their worker first starts; comma-separated in the environment.
    agents: Annotated[tuple[str, ...], _agent_names] = ()
    #: Sender of the messages that no agent sends: those of a script, a web application or beat.
    sender: Annotated[str | None, _or_none(_agent_name)] = None
    #: Seconds until a message that no worker has begun expires, unless the message sets its own; None: never.
    ttl_seconds: SecondsOrNever = 300.0
    #: Seconds until an event expires for a subscriber that has not begun it; None: never.
    event_ttl_seconds: SecondsOrNever = None
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
    #: Seconds without progress, while there is work, after which a worker counts as stalled; at least 1.
    stall_seconds: Annotated[float, partial(_number, least=1)] = 60.0
    #: What a stalled worker does: ``exit``, so that its supervisor starts a new one, or ``log``.
    on_stall: Annotated[OnStall, _one_of(OnStall)] = OnStall.EXIT
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
    #: Retries of a handler that does not set its own.
    retries: CountOrZero = 0
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
            and not _KUBERNETES.search(name)
        }
        _check_names(variables, "environment variable", PREFIX.upper())
        types, given = get_type_hints(cls, include_extras=True), {}
        for name, value in (values | variables).items():
            try:
                for read in getattr(types[name], "__metadata__", ()):
                    value = read(value)
                given[name] = value
            except ValueError as error:
                key = f"{PREFIX.upper()}{name.upper()}" if name in variables else f"{PREFIX}{name}"
                shown = "a secret" if name in _SECRETS else f"{value!r:.80}"
                raise ConfigurationError(f"{key}: {error} (it is {shown})") from error
        return cls(**given)


def _check_names(names: Iterable[str], what: str, prefix: str) -> None:
    known = [each.name for each in fields(WaooawSettings)]
    for name in names:
        if name not in known:
            near = [key for key in known if name in key] or difflib.get_close_matches(name, known, cutoff=0.5)
            shown = [name.upper() if prefix.isupper() else name for name in (name, *(near[:1] or known))]
            hint = f"did you mean {prefix}{shown[1]}?" if near else f"known are {', '.join(sorted(shown[1:]))}"
            raise ConfigurationError(f"unknown {what} {prefix}{shown[0]}: {hint}")
