"""The messages that a handler of batches is given together, and what it decides about each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import overload

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.message import Message

#: The longest pause before the next attempt at a message, in seconds: a year.
LONGEST_COUNTDOWN = 366 * 24 * 3600


class VerdictKind(Enum):
    """What happens to a message when its handler has ended."""

    HANDLED = "handled"  #: nothing more: its handler has returned
    FAILED = "failed"  #: it has failed, and is not tried again
    RETRIED = "retried"  #: the handler asks for another attempt
    RAISED = "raised"  #: the handler has raised, and its retry policy decides


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a handler of batches decided about one message.

    Attributes:
        kind: what happens to the message.
        error: why, if it is not HANDLED; None: the handler asks for another attempt and names no error.
        countdown: seconds until the next attempt; None: the retry policy decides.
    """

    kind: VerdictKind
    error: Exception | None = None
    countdown: float | None = None


_HANDLED = Verdict(VerdictKind.HANDLED)


class MessageBatch(Sequence[Message]):
    """The messages of one call of a handler of batches, in the order in which they were delivered.

    A message is HANDLED when the handler returns, unless the handler has called ``fail`` or ``retry`` for it. When
    the handler raises, each message for which it has called neither fails with that error, or is retried.

    Args:
        messages: the messages.

    Example:
        >>> @agent.on(MessageType.COMMAND, batch=100, within=0.05)
        ... def store(batch: MessageBatch) -> None:
        ...     for message in batch:
        ...         if "text" not in message.payload:
        ...             batch.fail(message, ValueError("it has no text"))
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = tuple(messages)
        self._ids = {message.message_id for message in self._messages}
        self._verdicts: dict[str, Verdict] = {}
        self._has_ended = False

    def fail(self, message: Message, error: Exception) -> None:
        """Let one message fail; it is not tried again. A later call for the same message replaces this one.

        Args:
            message: a message of this batch.
            error: why it fails.

        Raises:
            InvalidMessage: the message is not in this batch, the error is no exception, or the handler has ended.
        """
        if not isinstance(error, Exception):
            raise InvalidMessage(
                f"fail() takes an exception, not {type(error).__name__}: batch.fail(message, ValueError(...))"
            )
        self._decide(message, Verdict(VerdictKind.FAILED, error))

    def retry(self, message: Message, error: Exception | None = None, countdown: float | None = None) -> None:
        """Let one message be tried again, as often as its handler allows; after that it fails.

        A later call for the same message replaces this one.

        Args:
            message: a message of this batch.
            error: why; it is the error of the message if it may not be tried again. None: there is none.
            countdown: seconds until the next attempt; None: the retry policy of the handler decides.

        Raises:
            InvalidMessage: the message is not in this batch, the error is no exception, the countdown is too long,
                or the handler has ended.
        """
        if error is not None and not isinstance(error, Exception):
            raise InvalidMessage(
                f"retry() takes an exception, not {type(error).__name__}: batch.retry(message, OSError(...))"
            )
        if countdown is not None and (
            isinstance(countdown, bool)
            or not isinstance(countdown, int | float)
            or not 0 <= countdown <= LONGEST_COUNTDOWN
        ):
            raise InvalidMessage(
                f"countdown must be a number of seconds from 0 to {LONGEST_COUNTDOWN}, not {countdown!r:.80}"
            )
        self._decide(message, Verdict(VerdictKind.RETRIED, error, countdown))

    def _decide(self, message: Message, verdict: Verdict) -> None:
        if getattr(message, "message_id", None) not in self._ids:
            raise InvalidMessage(f"this batch has no message {getattr(message, 'message_id', message)!r:.80}")
        if self._has_ended:
            raise InvalidMessage(
                "the handler of this batch has ended, so that the outcomes of its messages are known already"
            )
        self._verdicts[message.message_id] = verdict

    def verdicts(self, raised: Exception | None = None) -> list[Verdict]:
        """End the batch, and return what was decided about each message. The worker calls it.

        Args:
            raised: what the handler raised; None: it returned.
        """
        self._has_ended = True
        otherwise = _HANDLED if raised is None else Verdict(VerdictKind.RAISED, raised)
        return [self._verdicts.get(message.message_id, otherwise) for message in self._messages]

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...

    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self._messages[index]

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        """Return the number of messages; their payloads may be large or secret."""
        return f"<MessageBatch of {len(self._messages)}>"
