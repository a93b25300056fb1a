"""How often, how soon and for which errors a handler is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from waooaw_celery.errors import ConfigurationError

#: Longest pause that can be asked for, in seconds: a month.
_LONGEST = 31 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """When a handler that raises is tried again: ``@agent.on(MessageType.COMMAND, retries=Retries(attempts=5))``.

    The pause before the second attempt is ``first_delay``, each further one ``factor`` times as long as the last.
    Attempts of any kind count: also one that took its process with it. What the message's time to live does not
    leave time for is not tried: it fails at once, with the handler's own error.

    Attributes:
        attempts: how often it is tried in all, the first time among them.
        first_delay: seconds before the second attempt.
        factor: how many times longer each further pause is.
        longest_delay: seconds that no pause exceeds.
        jitter: whether each pause is a random part of itself, between a half and the whole, so that what failed
            together does not come back together.
        on: the errors that are worth another attempt.
        never: those of them that are not.

    Raises:
        ConfigurationError: a value is impossible.

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
            object.__setattr__(self, name, _classes(name, getattr(self, name)))

    @classmethod
    def of(cls, value: Retries | int) -> Retries:
        """Return what ``retries=`` says: a plain number is so many further attempts, with the default pauses.

        Raises:
            ConfigurationError: it says neither.
        """
        if isinstance(value, cls):
            return value
        if type(value) is not int or not 0 <= value < 1000:
            raise ConfigurationError(f"retries must be a number from 0 to 999 or Retries(...), not {value!r:.80}")
        return cls(attempts=value + 1)

    def wants(self, error: BaseException) -> bool:
        """Whether an error is worth another attempt."""
        return isinstance(error, self.on) and not isinstance(error, self.never)

    def delay(self, retry: int) -> float:
        """Return the seconds to wait before a retry.

        Args:
            retry: which, counted from 0.
        """
        try:
            pause = min(self.first_delay * self.factor**retry, self.longest_delay)
        except OverflowError:
            pause = self.longest_delay
        return pause * random.uniform(0.5, 1.0) if self.jitter else pause  # noqa: S311 - nothing here is secret

    def delays(self) -> tuple[float, ...]:
        """Return the pauses of a message that fails each time."""
        return tuple(self.delay(retry) for retry in range(self.attempts - 1))


def _classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple | list) else (value,)
    for each in classes:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise ConfigurationError(f"{name} takes classes of exceptions, not {each!r:.80}")
    return tuple(classes)
