"""Acknowledgements of one channel: sent together with the next claim, or at once.

An acknowledgement may carry commands, such as those that record the outcome of its message. The server runs them
in the same step, so that neither happens without the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from redis.exceptions import RedisError

from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.redis.scripts import CLAIM
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: A command of the server, with all its arguments.
Command: TypeAlias = tuple[str | bytes | int, ...]
#: Commands by the tags of the messages whose acknowledgements carry them.
Carried: TypeAlias = dict[str, tuple[Command, ...]]


class Deliveries(Protocol):
    """Lets claims record in receipts that messages are delivered."""

    def claim_args(self) -> tuple[int, str, int, str, str]:
        """Return the arguments of the claim script.

        They are: of how many messages to record it; the prefix of the receipts' keys; the seconds for which a
        receipt is kept; the key of the messages that expire; the time.
        """

    def withdraw(self, raw: bytes) -> None:
        """Take back what a claim has recorded of a message that does not begin.

        Args:
            raw: The message as it was claimed.
        """


class Batches(Protocol):
    """The batches that a consumer collects, for which it holds more messages than its prefetch count."""

    def rooms(self) -> Sequence[tuple[str, int]]:
        """Return the name of each task that collects batches, and how many messages it still takes."""

    def uncounted(self) -> int:
        """Return how many of the messages that the consumer holds do not count towards its prefetch count."""


class Acknowledgements:
    """The delivery tags of handled messages that the server still lists as unacknowledged.

    An acknowledgement can be repeated without harm, so those whose reply was lost are sent again. The threads of a
    worker's pool may add tags.

    Args:
        channel: The channel that delivered the messages.

    Attributes:
        carried: The commands that acknowledgements carry.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._pending: deque[str] = deque()
        self._in_flight: list[str] = []
        self._flushing = threading.Lock()
        self.carried: Carried = {}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, tag: str) -> None:
        """Add the tag of a handled message."""
        self._pending.append(tag)

    def carry(self, tag: str, *commands: Command) -> None:
        """Have the acknowledgement of a message carry commands. Call it before the message is acknowledged.

        Args:
            tag: The message's delivery tag.
            commands: The commands. They may be executed twice, when an answer is lost.
        """
        self.carried[tag] = self.carried.get(tag, ()) + commands

    def take_for_claim(self) -> list[Any]:
        """Return the last arguments of the next claim: the commands to execute, and the tags to acknowledge."""
        self._in_flight += self._take_pending()
        return ack_args(self._in_flight, self.carried)

    def confirm_claim(self) -> None:
        """Drop the tags that were sent with the last claim: the server has answered it."""
        drop_carried(self._in_flight, self.carried)
        self._in_flight.clear()

    def flush(self, *, include_in_flight: bool = False) -> None:
        """Send the pending acknowledgements now.

        Args:
            include_in_flight: Whether to send again the tags of a claim that was not answered.

        Raises:
            RedisError: The server cannot be reached. The tags stay pending.
        """
        if include_in_flight:
            self._pending.extend(self._in_flight)
            self._in_flight.clear()
        with self._flushing:  # a thread that waits here finds its tag sent by another one
            tags = self._take_pending()
            if not tags:
                return
            try:
                remove_unacked(self._channel.scripts_client, ack_keys(self._channel.keys), tags, self.carried)
            except BaseException:
                self._pending.extendleft(reversed(tags))
                raise

    def try_to_flush(self) -> None:
        """Send the pending acknowledgements now. If the server cannot be reached, they stay pending."""
        try:
            self.flush()
        except (RedisError, OSError) as error:
            logger.warning(
                "acknowledgements wait until Redis answers: %s", error, extra={"action": "acknowledgement_waits"}
            )

    def take_unsent(self) -> list[str]:
        """Take the tags whose removal the server has not confirmed."""
        in_flight, self._in_flight = self._in_flight, []
        return in_flight + self._take_pending()

    def _take_pending(self) -> list[str]:
        tags: list[str] = []
        try:
            while True:
                tags.append(self._pending.popleft())
        except IndexError:  # checking the length first proves nothing: another thread may take the last tag
            return tags


def ack_keys(keys: Keys) -> list[str]:
    """Return the keys that an acknowledgement needs.

    Args:
        keys: The keys of the channel that delivered the message.
    """
    return [*keys.noted, keys.dead_letters]


def claim_args(
    window: int,
    tag_prefix: str,
    queues: Sequence[str],
    dead_letters_max: int,
    deliveries: Deliveries | None,
    rooms: Sequence[tuple[str, int]] = (),
    groups: bytes = b"",
) -> list[Any]:
    """Return the first arguments of the claim script.

    Args:
        window: How many messages to claim.
        tag_prefix: The prefix of their tags.
        queues: The names of the queues.
        dead_letters_max: The maximum of dead letters.
        deliveries: Records deliveries; None: the claim records none.
        rooms: How many messages to claim for each handler of batches, by the name of its task. They do not count
            among the others.
        groups: How the messages of the queues are grouped; empty: they are not.
    """
    recorded = (0, "", 0, "", "") if deliveries is None or not window else deliveries.claim_args()
    return [
        window,
        tag_prefix,
        len(queues),
        dead_letters_max,
        *recorded,
        groups,
        *queues,
        len(rooms),
        *(word for room in rooms for word in room),
    ]


def ack_args(tags: Sequence[str], carried: Mapping[str, Sequence[Command]]) -> list[Any]:
    """Return the last arguments of the claim script.

    Args:
        tags: The tags of the messages to acknowledge.
        carried: The commands that acknowledgements carry.
    """
    commands = [command for tag in tags for command in carried.get(tag, ())] if carried else ()
    args: list[Any] = [len(commands)]
    for command in commands:
        args.append(len(command))
        args += command
    args += tags
    return args


def log_failed(error: Any) -> None:
    """Log that the server refused a command that an acknowledgement carried."""
    logger.error(
        "an outcome could not be recorded with its acknowledgement: %s",
        error.decode(errors="replace") if isinstance(error, bytes) else error,
        extra={"action": "outcome_not_recorded"},
    )


def drop_carried(tags: Sequence[str], carried: Carried) -> None:
    """Drop the commands of acknowledgements that the server has confirmed."""
    if carried:
        for tag in tags:
            carried.pop(tag, None)


def remove_unacked(client: Any, keys: Sequence[str], tags: Sequence[str], carried: Carried) -> None:
    """Remove messages from the unacknowledged ones, and execute what their acknowledgements carry.

    Args:
        client: The Redis client to use.
        keys: What ``ack_keys`` returned.
        tags: The delivery tags.
        carried: The commands that acknowledgements carry. Those of these messages are removed from it.

    Raises:
        RedisError: The server cannot be reached, or refuses the command.
    """
    failed = CLAIM(client, keys, claim_args(0, "", (), 0, None) + ack_args(tags, carried))
    for error in failed[2::3]:
        log_failed(error)
    drop_carried(tags, carried)
