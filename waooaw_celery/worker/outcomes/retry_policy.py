"""How often, how soon and for which errors a handler is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from waooaw_celery.errors import ConfigurationError

#: The longest pause that is accepted, in seconds: a month.
_LONGEST = 31 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """When a handler that raises is tried again: ``@agent.on(MessageType.COMMAND, retries=Retries(attempts=5))``.

    The pause before the second attempt is ``first_delay``. Each further pause is ``factor`` times as long as the
    last. Every attempt counts, also one that lost its process. When a message would expire before its next
    attempt, it fails at once with the handler's error.

    Attributes:
        attempts: how often the handler is tried in all, including the first time; from 1 to 1000.
        first_delay: seconds before the second attempt.
        factor: how many times longer each further pause is.
        longest_delay: the longest pause, in seconds.
        jitter: whether each pause is a random part of itself, between a half and the whole, so that messages which
            failed together are not retried together.
        on: the errors that are retried.
        never: subclasses of these that are not retried.

    Raises:
        ConfigurationError: a value is out of range.

    Example:
        >>> Retries(attempts=4, first_delay=0.5, on=(ConnectionError,), jitter=False).delays()
        (0.5, 1.0, 2.0)
    """

    attempts: int = 4
    first_delay: float = 1.0
    factor: float = 2.0
    longest_delay: float = 600.0
    jitter: bool = True
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= 1000:
            raise ConfigurationError(f"attempts must be a number from 1 to 1000, not {self.attempts!r:.80}")
        for name, least in (("first_delay", 0.0), ("factor", 1.0), ("longest_delay", 0.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= _LONGEST:
                raise ConfigurationError(
                    f"{name} must be a number from {least:g} to {_LONGEST:g}, not {value!r:.80}"
                )
        for name in ("on", "never"):
            object.__setattr__(self, name, _error_classes(name, getattr(self, name)))

    @classmethod
    def of(cls, value: Retries | int) -> Retries:
        """Return the retry policy for the value of a handler's ``retries=`` or of the setting ``waooaw_retries``.

        Args:
            value: a retry policy, or a number of further attempts, from 0 to 999, with the default pauses.

        Raises:
            ConfigurationError: it is neither.

        Example:
            >>> Retries.of(2).attempts
            3
        """
        if isinstance(value, cls):
            return value
        if type(value) is not int or not 0 <= value < 1000:
            raise ConfigurationError(f"retries must be a number from 0 to 999 or Retries(...), not {value!r:.80}")
        return cls(attempts=value + 1)

    def should_retry(self, error: BaseException) -> bool:
        """Return whether an error is retried."""
        return isinstance(error, self.on) and not isinstance(error, self.never)

    def delay(self, retry: int) -> float:
        """Return the pause before a retry, in seconds.

        Args:
            retry: which retry, counted from 0.
        """
        try:
            pause = min(self.first_delay * self.factor**retry, self.longest_delay)
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
