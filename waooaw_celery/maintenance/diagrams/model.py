"""A conversation as a picture shows it: the participants, and an arrow for each message."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from waooaw_celery.messages.enums import MessageStatus


class ParticipantKind(StrEnum):
    """What a lifeline of the picture stands for."""

    AGENT = "agent"  #: an agent, or another sender
    TOPIC = "topic"  #: a topic: its events go from it to the subscribers
    OTHERS = "others"  #: several agents and topics in one, because there are too many


class ArrowKind(StrEnum):
    """What an arrow of the picture stands for."""

    COMMAND = "command"  #: a message to a handler
    REQUEST = "request"  #: a call of a method, which has an answer
    WORKFLOW = "workflow"  #: the start of a workflow, a signal to it, or a command
    ACK = "ack"  #: a confirmation
    EVENT = "event"  #: a publish to a topic
    DELIVERY = "delivery"  #: the message that brings an event to one subscriber
    ANSWER = "answer"  #: the answer to a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A lifeline of the picture.

    Attributes:
        name: the agent or the topic, as the ledger has it: it may be any text.
        kind: what it is.
        count: how many agents and topics it stands for; more than 1 for OTHERS.
    """

    name: str
    kind: ParticipantKind = ParticipantKind.AGENT
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a worker to handle a message.

    Attributes:
        number: the number of the attempt, from 1.
        began_at: when it began.
        ended_at: when it ended; None: it runs, or its end is not known.
        outcome: handled, retried, failed, dead or cancelled; ``lost`` if another attempt began without an end of
            this one, because its worker died; None while it runs.
        seconds: how long the handler ran; None if unknown.
        worker: the node name of the worker, or None.
        error: why it failed, or None.
    """

    number: int
    began_at: datetime
    ended_at: datetime | None
    outcome: str | None
    seconds: float | None
    worker: str | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """A message, or several ones that were folded into one arrow.

    Attributes:
        message_id: the id of the message; of a folded arrow, of its first message with the worst status.
        source: the participant that it comes from, as an index of ``ConversationDiagram.participants``.
        target: the participant that it goes to, as an index.
        from_agent: the sender; empty if several senders were folded.
        to_agent: the recipient; empty for an event's record, or if several recipients were folded.
        label: the handler, the topic, or ``answer``.
        kind: what it is.
        status: the status of the message; the worst one of a folded arrow.
        sent_at: when it was sent; the first one.
        delivered_at: when a worker first began to handle it; the first one.
        finished_at: when it reached its final status, or None; the last one, or None if any has not ended.
        expires_at: when it expires, or None.
        waiting_seconds: from the send to the first attempt, or None; the longest one.
        handling_seconds: how long the last attempt ran, or None; the longest one.
        attempts: its attempts, in order; none for a folded arrow.
        retries: how many attempts it had beyond the first; the sum.
        cancel_requested_at: when its cancellation was first requested, or None.
        error: why it failed, or None.
        cause_id: the id of the message whose handler sent it, or None.
        answer_id: the id of the message that answers it, or None.
        depth: how many messages of the conversation are above it in the tree of causes.
        count: how many messages the arrow stands for.
        by_status: for a folded arrow, how many messages have each status, the worst first; otherwise empty.
    """

    message_id: str
    source: int
    target: int
    from_agent: str
    to_agent: str
    label: str
    kind: ArrowKind
    status: MessageStatus
    sent_at: datetime
    delivered_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    waiting_seconds: float | None = None
    handling_seconds: float | None = None
    attempts: tuple[Attempt, ...] = ()
    retries: int = 0
    cancel_requested_at: datetime | None = None
    error: str | None = None
    cause_id: str | None = None
    answer_id: str | None = None
    depth: int = 0
    count: int = 1
    by_status: tuple[tuple[MessageStatus, int], ...] = ()

    @property
    def is_folded(self) -> bool:
        """Whether it stands for several messages."""
        return self.count > 1

    @property
    def is_dead_letter(self) -> bool:
        """Whether the message is a dead letter, or one of the folded messages is."""
        return self.status is MessageStatus.DEAD

    @property
    def went_wrong(self) -> bool:
        """Whether the message was not handled: it failed, expired, or is a dead letter."""
        return self.status in FAILURES

    @property
    def ends_at(self) -> datetime:
        """The last time that is known of it."""
        times = [self.sent_at, self.delivered_at, self.finished_at]
        times += [attempt.ended_at or attempt.began_at for attempt in self.attempts]
        return max(time for time in times if time is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationDiagram:
    """A conversation as a picture shows it.

    Attributes:
        conversation_id: the id of the conversation.
        participants: the agents and topics, in order of their first appearance.
        arrows: the messages, in order of time; a message never precedes its cause.
        messages: how many messages the conversation has.
        by_status: how many messages have each status, the worst first.
        agents: how many agents take part.
        retries: how many attempts there were beyond the first ones.
        began_at: when the first message was sent.
        ended_at: the last time that is known of any message.
    """

    conversation_id: str
    participants: tuple[Participant, ...]
    arrows: tuple[Arrow, ...]
    messages: int
    by_status: tuple[tuple[MessageStatus, int], ...]
    agents: int
    retries: int
    began_at: datetime
    ended_at: datetime

    @property
    def is_folded(self) -> bool:
        """Whether some arrow stands for several messages."""
        return len(self.arrows) < self.messages

    @property
    def seconds(self) -> float:
        """The seconds from the first message to the last known time."""
        return (self.ended_at - self.began_at).total_seconds()

    @property
    def failures(self) -> int:
        """How many messages failed, expired, or are dead letters."""
        return sum(count for status, count in self.by_status if status in FAILURES)

    @property
    def open(self) -> int:
        """How many messages have not ended."""
        return sum(count for status, count in self.by_status if not status.final)


#: The statuses from the worst one to the best one: a folded arrow has the worst of its messages.
WORST_FIRST = (
    MessageStatus.DEAD,
    MessageStatus.FAILED,
    MessageStatus.EXPIRED,
    MessageStatus.CANCELLED,
    MessageStatus.PENDING,
    MessageStatus.SENT,
    MessageStatus.DELIVERED,
    MessageStatus.HANDLED,
    MessageStatus.ANSWERED,
    MessageStatus.PUBLISHED,
)
#: The statuses of messages that should have been handled and were not.
FAILURES = frozenset({MessageStatus.DEAD, MessageStatus.FAILED, MessageStatus.EXPIRED})
