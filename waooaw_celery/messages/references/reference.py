"""A reference to a payload that does not travel with its message: a claim check."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.json_form import JsonForm

#: The serializer of a body that carries a reference, and its content type. A worker that does not know them,
#: such as one of an older version, refuses the message: it would otherwise call the handler without arguments.
REFERENCE_SERIALIZER = "waooaw-reference"
REFERENCE_CONTENT_TYPE = "application/vnd.waooaw.reference+json"
#: The key of a stored payload: the day until which it is kept, when it was stored, and a random part. It is a
#: relative path without any step upwards, so that no reference can name a file that is not in the store.
_KEY = re.compile(r"\d{4}-\d\d-\d\d/\d{8}T\d{6}-[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(JsonForm):
    """Where a large payload is, and what it must be.

    Attributes:
        key: its name in the store.
        size: its size in bytes, as it is stored: encoded, and compressed or encrypted where the message was to be.
        sha256: the SHA-256 of these bytes, in hexadecimal.
        content_type: the format of the payload.
        content_encoding: ``utf-8`` or ``binary``.
        codec: the content type of the codec; None: it is not compressed and not encrypted.

    Raises:
        InvalidMessage: a field is invalid.

    Example:
        >>> reference.size, reference.key[:10]
        (10485763, '2027-02-28')
    """

    key: str
    size: int
    sha256: str
    content_type: str
    content_encoding: str
    codec: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not is_key(self.key):
            raise InvalidMessage(f"the key of a reference must be one of a stored payload, not {self.key!r:.80}")
        if type(self.size) is not int or self.size < 0:
            raise InvalidMessage(f"the size of a reference must be a number of bytes, not {self.size!r:.80}")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise InvalidMessage("the digest of a reference must be a SHA-256 in hexadecimal")
        for name in ("content_type", "content_encoding", "codec"):
            value = getattr(self, name)
            is_text = isinstance(value, str) and 0 < len(value) <= _MOST_TEXT and value.isprintable()
            if not is_text and not (name == "codec" and value is None):
                raise InvalidMessage(f"the {name} of a reference must be a short text, not {value!r:.80}")

    @classmethod
    def of_form(cls, form: Any) -> Self:
        """Return the reference of its JSON form.

        Raises:
            InvalidMessage: it is not the form of a reference.
        """
        if not isinstance(form, Mapping):
            raise InvalidMessage(f"a reference must be a JSON object, not {form!r:.80}")
        return cls.from_dict(form)


def is_key(text: str) -> bool:
    """Return whether a text is the key of a stored payload."""
    return _KEY.fullmatch(text) is not None


def reference_in(args: Sequence[Any] | None) -> Reference | None:
    """Return the reference that stands in place of a task's arguments, or None: the arguments themselves do.

    Args:
        args: the positional arguments of the task.
    """
    return args[0] if args and len(args) == 1 and isinstance(args[0], Reference) else None
