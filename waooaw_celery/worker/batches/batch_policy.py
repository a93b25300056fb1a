"""How many messages a handler of batches is given at once, and how long the first of them waits for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from waooaw_celery.errors import ConfigurationError

#: Bounds. A worker holds a whole batch in its memory, and its messages wait there for others.
LARGEST_BATCH, LONGEST_WAIT = 1000, 60.0
#: The seconds that the first message waits for others if the handler does not say.
DEFAULT_WAIT = 0.05
#: Options of handlers that make no sense for several messages, and what to do instead.
_REFUSED_OPTIONS = {
    "once": "its transaction has one message; leave once=True out, or leave batch= out",
    "bind": "its task has no message of its own; leave bind=True out",
    "autoretry_for": "use retries=RetryPolicy(on=...)",
    "rate_limit": "it would be a limit of single messages; leave rate_limit out",
    "deadline": "only methods have callers that wait; leave deadline= out",
}


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The limits of a handler of batches.

    Attributes:
        size: how many messages it is given at most.
        within: seconds that the first message waits for others.
    """

    size: int
    within: float


def take_batch_policy(options: dict[str, Any], target: object) -> BatchPolicy | None:
    """Take the options ``batch`` and ``within`` out of a handler's options, and return what they say.

    Args:
        options: the options of the handler.
        target: the handler, for the text of an error.

    Returns:
        None: the handler is given one message at a time.

    Raises:
        ConfigurationError: a value is out of range, or another option does not go with them.
    """
    has_wait = "within" in options
    size, within = options.pop("batch", None), options.pop("within", DEFAULT_WAIT)
    if size is None:
        if has_wait:
            raise ConfigurationError(
                f"{target} has within= and no batch=: add the largest number of messages, such as batch=100"
            )
        return None
    if type(size) is not int or not 1 <= size <= LARGEST_BATCH:
        raise ConfigurationError(
            f"{target} cannot have batch={size!r:.80}: it is the largest number of messages that the handler is "
            f"given at once, from 1 to {LARGEST_BATCH}"
        )
    if isinstance(within, bool) or not isinstance(within, int | float) or not 0 <= within <= LONGEST_WAIT:
        raise ConfigurationError(
            f"{target} cannot have within={within!r:.80}: it is the time that the first message waits for others, "
            f"from 0 to {LONGEST_WAIT:g} seconds"
        )
    for name, remedy in _REFUSED_OPTIONS.items():
        if options.get(name):
            raise ConfigurationError(f"{target} cannot have {name}= together with batch=: {remedy}")
    return BatchPolicy(size, float(within))


def refuse_batch(options: dict[str, Any], target: object, remedy: str) -> None:
    """Refuse the options ``batch`` and ``within`` for a handler that takes one message at a time.

    Args:
        options: the options of the handler.
        target: the handler.
        remedy: why, and what to do instead.

    Raises:
        ConfigurationError: there is one of them.
    """
    for name in ("batch", "within"):
        if name in options:
            raise ConfigurationError(f"{target} cannot have {name}=: {remedy}")
