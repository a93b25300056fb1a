"""How often, how soon and for which errors a handler, or a step of a workflow, is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Self

from waooaw_celery.errors import ConfigurationError

#: The longest pause that is accepted, in seconds: a month.
_LONGEST = 31 * 86_400.0
#: The least value of each field that is a number of seconds or a factor.
_BOUNDS = (
    ("first_delay", 0.0),
    ("factor", 1.0),
    ("increment", 0.0),
    ("longest_delay", 0.0),
    ("total_seconds", 0.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a handler that raises is tried again: ``@agent.on(MessageType.COMMAND, retries=RetryPolicy(...))``.

    Workflows use the same class for their steps. The pause before the second attempt is ``first_delay``. Each
    further pause is ``factor`` times as long as the last, and ``increment`` seconds longer. Every attempt counts,
    also one that lost its process. When a message would expire before its next attempt, it fails at once with the
    handler's error.

    Attributes:
        attempts: how often the handler is tried in all, including the first time; from 1 to 1000.
        first_delay: seconds before the second attempt.
        factor: how many times longer each further pause is.
        increment: how many seconds longer each further pause is.
        longest_delay: the longest pause, in seconds.
        jitter: whether each pause is a random part of itself, between a half and the whole, so that messages which
            failed together are not retried together.
        on: the errors that are retried.
        never: subclasses of these that are not retried.
        total_seconds: seconds from the first attempt after which no further attempt begins; None: no limit.

    Raises:
        ConfigurationError: a value is out of range.

    Example:
        >>> RetryPolicy(attempts=4, first_delay=0.5, on=(ConnectionError,), jitter=False).delays()
        (0.5, 1.0, 2.0)
    """

    attempts: int = 4
    first_delay: float = 1.0
    factor: float = 2.0
    increment: float = 0.0
    longest_delay: float = 600.0
    jitter: bool = True
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()
    total_seconds: float | None = None

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= 1000:
            raise ConfigurationError(f"attempts must be a number from 1 to 1000, not {self.attempts!r:.80}")
        for name, least in _BOUNDS:
            value = getattr(self, name)
            if value is None and name == "total_seconds":
                continue
            if type(value) not in (int, float) or not least <= value <= _LONGEST:
                raise ConfigurationError(
                    f"{name} must be a number from {least:g} to {_LONGEST:g}, not {value!r:.80}"
                )
        for name in ("on", "never"):
            object.__setattr__(self, name, _error_classes(name, getattr(self, name)))

    @classmethod
    def of(cls, value: RetryPolicy | int) -> RetryPolicy:
        """Return the retry policy for the value of a handler's ``retries=`` or of the setting ``waooaw_retries``.

        Args:
            value: a retry policy, or a number of further attempts, from 0 to 999, with the default pauses.

        Raises:
            ConfigurationError: it is neither.

        Example:
            >>> RetryPolicy.of(2).attempts
            3
        """
        if isinstance(value, cls):
            return value
        if type(value) is not int or not 0 <= value < 1000:
            raise ConfigurationError(
                f"retries must be a number from 0 to 999 or RetryPolicy(...), not {value!r:.80}"
            )
        return cls(attempts=value + 1)

    @classmethod
    def fixed(cls, attempts: int, delay: float = 1.0, **others: Any) -> Self:
        """Return a policy whose pauses are all the same.

        Args:
            attempts: how often it is tried in all.
            delay: seconds of each pause.
            others: the other fields, such as ``on`` and ``jitter``.

        Example:
            >>> RetryPolicy.fixed(4, 2, jitter=False).delays()
            (2.0, 2.0, 2.0)
        """
        return cls(attempts=attempts, first_delay=float(delay), factor=1.0, **others)

    @classmethod
    def linear(cls, attempts: int, delay: float = 1.0, increment: float | None = None, **others: Any) -> Self:
        """Return a policy whose pauses grow by the same time.

        Args:
            attempts: how often it is tried in all.
            delay: seconds of the first pause.
            increment: seconds by which each further pause is longer; None: ``delay``.
            others: the other fields.

        Example:
            >>> RetryPolicy.linear(4, 2, jitter=False).delays()
            (2.0, 4.0, 6.0)
        """
        step = float(delay if increment is None else increment)
        return cls(attempts=attempts, first_delay=float(delay), factor=1.0, increment=step, **others)

    @classmethod
    def exponential(cls, attempts: int, delay: float = 1.0, factor: float = 2.0, **others: Any) -> Self:
        """Return a policy whose pauses are multiplied each time.

        Args:
            attempts: how often it is tried in all.
            delay: seconds of the first pause.
            factor: how many times longer each further pause is.
            others: the other fields.

        Example:
            >>> RetryPolicy.exponential(4, 2, jitter=False).delays()
            (2.0, 4.0, 8.0)
        """
        return cls(attempts=attempts, first_delay=float(delay), factor=factor, **others)

    def may_retry(self, attempts: int, error: BaseException, seconds: float) -> bool:
        """Return whether another attempt follows.

        Args:
            attempts: how often it was tried.
            error: what the last attempt raised.
            seconds: seconds since the first attempt began.
        """
        in_time = self.total_seconds is None or seconds < self.total_seconds
        return attempts < self.attempts and in_time and self.should_retry(error)

    def should_retry(self, error: BaseException) -> bool:
        """Return whether an error is retried."""
        return isinstance(error, self.on) and not isinstance(error, self.never)

    def delay(self, retry: int) -> float:
        """Return the pause before a retry, in seconds.

        Args:
            retry: which retry, counted from 0.
        """
        try:
            pause = min(self.first_delay * self.factor**retry + self.increment * retry, self.longest_delay)
        except OverflowError:
            pause = self.longest_delay
        return pause * random.uniform(0.5, 1.0) if self.jitter else pause  # noqa: S311 - nothing here is secret

    def delays(self) -> tuple[float, ...]:
        """Return the pauses, in seconds, of a message whose handler fails each time."""
        return tuple(self.delay(retry) for retry in range(self.attempts - 1))


def _error_classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple | list) else (value,)
    for each in classes:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise ConfigurationError(f"{name} takes classes of exceptions, not {each!r:.80}")
    return tuple(classes)
