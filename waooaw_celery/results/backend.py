"""Celery's result backends, with this package's formats: results are decoded within limits.

On Redis, results are also compressed like messages. Celery itself would use Kombu's formats, which belong to all
applications of the process and have no limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from celery.app.backends import BACKEND_ALIASES
from celery.backends import redis
from celery.backends.base import COMPRESSED_PAYLOAD_MAGIC  # type: ignore[attr-defined]  # its stubs are old
from celery.states import SUCCESS
from kombu.exceptions import EncodeError
from kombu.utils.imports import symbol_by_name
from redis.exceptions import NoPermissionError

from waooaw_celery.broker.redis.scripts import Script
from waooaw_celery.errors import DecodingFailed, EncodingFailed
from waooaw_celery.store.keys import PREFIX_OPTION, key_prefix
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.formats import decode, encode, find_format
from waooaw_celery.wire.packer import Packer, find_codec_choice

#: The size of the largest result that is stored with an acknowledgement, in bytes or characters.
MAX_CARRIED = 64 * 1024
#: Stores a result for some seconds, or 0: for ever, and publishes it, unless its key exists.
_STORE_FIRST = Script(
    """#!lua
local stored
if ARGV[2] == '0' then
    stored = redis.call('SET', KEYS[1], ARGV[1], 'NX')
else
    stored = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
end
if not stored then
    return 0
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""
)
#: The names of Celery's backends that store nothing.
_NO_STORAGE = frozenset({"disabled"})
#: The backend classes by Celery's names for its own.
BACKENDS = {name: f"{__name__}:{name}" for name in BACKEND_ALIASES if name not in _NO_STORAGE} | {
    "redis": f"{__name__}:RedisBackend",
    "rediss": f"{__name__}:RedisBackend",
    "sentinel": f"{__name__}:SentinelBackend",
}


class _BoundedResults:
    """A result backend that encodes and decodes with this package's formats, within the application's caps."""

    app: Any
    serializer: str
    content_type: str
    content_encoding: str
    accept: Any

    @property
    def packer(self) -> Packer:
        """The application's packer."""
        packer: Packer = self.app.packer  # an AgentApp
        return packer

    def _encode(self, data: Any) -> tuple[str, str, Any]:
        format_ = find_format(self.serializer)
        try:
            encoded = encode(data, format_)
        except EncodingFailed as error:  # callers see the name of the error that Celery itself would raise
            raise EncodeError(str(error)) from error
        return format_.content_type, format_.content_encoding, encoded

    def decode(self, payload: Any) -> Any:
        """Return a stored result; None if there is none.

        Raises:
            DecodingFailed: The result cannot be read, or is larger than the limit.
        """
        if payload is None:
            return None
        caps = self.packer.caps
        if isinstance(payload, memoryview | bytearray):
            payload = bytes(payload)
        if isinstance(payload, bytes) and payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
            codec, _, compressed = payload[len(COMPRESSED_PAYLOAD_MAGIC) :].partition(b"\0")
            payload = expand(compressed, codec.decode("ascii", "replace"), caps)
        try:
            accepted = replace(caps, content_types=self.accept)
            return decode(payload, self.content_type, self.content_encoding, accepted)
        except DecodingFailed as error:
            raise DecodingFailed(f"an answer cannot be read: {error}") from error


class _PackedResults(_BoundedResults):
    """A result backend that stores bytes.

    ``result_compression`` compresses results as ``task_compression`` compresses messages. If it is not set,
    ``task_compression`` applies to both.

    Its keys have the prefix of all keys, unless ``result_backend_transport_options`` names another one.

    Args:
        app: The application.
        args: Further arguments of Celery's backend.
        kwargs: Further arguments of Celery's backend.

    Raises:
        ConfigurationError: The prefix is no text.
    """

    def __init__(self, *args: Any, app: Any, **kwargs: Any) -> None:
        if not (app.conf.result_backend_transport_options or {}).get(PREFIX_OPTION):
            prefix = key_prefix(app.conf)  # Celery reads the prefix from the other options only
            for kind in ("task_keyprefix", "group_keyprefix", "chord_keyprefix"):
                setattr(self, kind, f"{prefix}{getattr(type(self), kind)}")
        super().__init__(*args, app=app, **kwargs)  # type: ignore[call-arg]  # Celery's backend does

    def prepare_compression(self, compression: str | None) -> str | None:
        """Check that the codec exists, and return None, so that Celery itself compresses nothing.

        Raises:
            ConfigurationError: There is no such codec.
        """
        find_codec_choice(compression)
        return None

    def encode(self, data: Any) -> Any:
        """Return a result in the form in which it is stored.

        Raises:
            EncodeError: The result cannot be written.
            EncodingFailed: It is larger than the limit.
        """
        payload = self._encode(data)[2]
        caps = self.packer.caps
        raw = payload.encode() if isinstance(payload, str) else payload
        if len(raw) > caps.max_expanded_bytes:
            raise EncodingFailed(
                f"the answer has {len(raw)} bytes, more than waooaw_max_expanded_bytes = {caps.max_expanded_bytes}"
            )
        settings = self.app.components.publish_settings.read()
        codec = find_codec_choice(settings.result_compression or settings.compression)
        compressed = None if codec is None else self.packer.compress(raw, codec)
        if compressed is None or codec is None:
            return payload
        return b"".join([COMPRESSED_PAYLOAD_MAGIC, codec.content_type.encode(), b"\0", compressed])


#: By application, what stores a result together with the acknowledgement of its message: it gets the id of the
#: task and the commands that store the result, and returns whether they will be executed.
_carriers: WeakKeyDictionary[Any, Callable[[str, Sequence[tuple[Any, ...]]], bool]] = WeakKeyDictionary()


def store_with_acknowledgements(app: Any, carry: Callable[[str, Sequence[tuple[Any, ...]]], bool] | None) -> None:
    """Store the results of a worker's messages together with their acknowledgements, where that is possible.

    Args:
        app: The application.
        carry: Gets the id of a task and the commands that store its result, and returns whether they will be
            executed with the acknowledgement. None: each result is stored by itself.
    """
    if carry is None:
        _carriers.pop(app, None)
    else:
        _carriers[app] = carry


class RedisBackend(_PackedResults, redis.RedisBackend):
    """Celery's result backend on Redis."""

    #: Whether the server lets its user run scripts, as far as it is known.
    _runs_scripts = True

    def _store_result(
        self, task_id: Any, result: Any, state: Any, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a result: with the acknowledgement of its message where a worker has set that up, or by itself.

        Celery asks first for an earlier result, which must stay. Here that is asked only where there is one.
        """
        if state == SUCCESS and request is not None and not request.chord:
            carry = _carriers.get(self.app)
            backend: Any = self  # its stubs lack what follows
            value = self.encode({**self._meta(result, request), "task_id": task_id})
            key, expires = self.get_key_for_task(task_id), int(backend.expires or 0)
            stored = ("SETEX", key, expires, value) if expires else ("SET", key, value)
            carried = (stored, ("PUBLISH", key, value))
            if carry is not None and len(value) <= MAX_CARRIED and carry(str(task_id), carried):
                return result
            if self._runs_scripts and backend.ensure(self._store_first, (key, value, expires)):
                return result
        store: Any = super()._store_result  # type: ignore[misc]  # missing in its stubs
        return store(task_id, result, state, traceback, request=request, **kwargs)

    def _store_first(self, key: Any, value: Any, expires: int) -> bool:
        """Store and publish a result if the server has nothing under its key, and return whether that is so."""
        try:
            return bool(_STORE_FIRST(self.client, [key], [value, expires]))
        except NoPermissionError:
            self._runs_scripts = False
            return False

    def _meta(self, result: Any, request: Any) -> dict[str, Any]:
        """Return what is stored of a result, as Celery does, without a look into its settings for each."""
        backend: Any = self  # its stubs lack what follows
        if self.app.components.publish_settings.read().result_extended:
            extended: dict[str, Any] = backend._get_result_meta(result, SUCCESS, None, request)
            return extended
        meta = {
            "status": SUCCESS,
            "result": result,
            "traceback": None,
            "children": backend.current_task_children(request),
            "date_done": self.app.now().isoformat(),
        }
        if request.group:
            meta["group_id"] = request.group
        if request.parent_id:
            meta["parent_id"] = request.parent_id
        return meta


class SentinelBackend(_PackedResults, redis.SentinelBackend):
    """The same backend on the master that a Redis Sentinel names."""


def __getattr__(name: str) -> type:
    """Return the subclass of another of Celery's backends, whose name is Celery's name for that.

    Celery looks it up here when an application uses the backend, so that the others are not imported.
    """
    if name not in BACKENDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _bounded(name)


@cache
def _bounded(name: str) -> type:
    backend = symbol_by_name(BACKEND_ALIASES[name])
    return type(name, (_BoundedResults, backend), {"__module__": __name__, "__doc__": backend.__doc__})
