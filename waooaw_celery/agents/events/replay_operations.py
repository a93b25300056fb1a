"""The operations with replays: send recorded events again, and list, follow and cancel the replays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, overload

from kombu.exceptions import OperationalError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.events.replay import REPLAY_TASK, EventReplayer, Pace, ReplayResult
from waooaw_celery.app.events.selection import Selection
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName, system_queue
from waooaw_celery.messages.topics.patterns import ANY_WORDS
from waooaw_celery.messages.validation import JSON

if TYPE_CHECKING:
    from waooaw_celery.ledger.events.replays import LedgerReplays, Replay

logger = get_logger(__name__)

#: Seconds after which that task, sent when a replay is asked for, has no use: beat sends it regularly.
_TASK_SECONDS = 60.0


class ReplayOperations:
    """The operations with replays.

    Args:
        app: the application whose ledger has the events and whose broker carries them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "EventBus")

    @overload
    def replay(
        self,
        subscriber: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        conversation: str | None = None,
        message_ids: Sequence[str] | None = None,
        topic: str = ANY_WORDS,
        where: Mapping[str, JSON] | None = None,
        limit: int | None = None,
        per_second: float | None = None,
        speed: float | None = None,
        from_agent: str | None = None,
        priority: Priority = Priority.LOW,
        dry_run: bool = False,
        wait: Literal[True] = True,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> ReplayResult: ...

    @overload
    def replay(
        self,
        subscriber: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        conversation: str | None = None,
        message_ids: Sequence[str] | None = None,
        topic: str = ANY_WORDS,
        where: Mapping[str, JSON] | None = None,
        limit: int | None = None,
        per_second: float | None = None,
        speed: float | None = None,
        from_agent: str | None = None,
        priority: Priority = Priority.LOW,
        dry_run: bool = False,
        wait: Literal[False],
    ) -> Replay: ...

    def replay(
        self,
        subscriber: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        conversation: str | None = None,
        message_ids: Sequence[str] | None = None,
        topic: str = ANY_WORDS,
        where: Mapping[str, JSON] | None = None,
        limit: int | None = None,
        per_second: float | None = None,
        speed: float | None = None,
        from_agent: str | None = None,
        priority: Priority = Priority.LOW,
        dry_run: bool = False,
        wait: bool = True,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> ReplayResult | Replay:
        """Send recorded events that match a subscription to its subscriber again, the oldest first.

        They are new messages, with the same event attributes except that ``event.replay`` is true. Give at least
        one of ``since``, ``conversation`` and ``message_ids``; an event must match all that are given.

        Args:
            subscriber: name of the subscription, ``<agent>.<name>``.
            since: only events that were published at this time or later.
            until: only events that were published before this time; None: before this call.
            conversation: only events of this conversation: the id of one of its messages, its correlation id or
                its conversation id.
            message_ids: only these events, at most 1,000: ids of events, or of the messages that delivered them.
            topic: only events on topics that match this pattern.
            where: only events whose payload matches this filter (see ``Filter``).
            limit: at most so many events, the oldest ones; None: all.
            per_second: number of events per second; None: from ``speed``.
            speed: factor by which the replay is faster than the events were published. If both are None, it is as
                fast as the broker.
            from_agent: the sender; None: as for ``publish``.
            priority: priority of the messages. With LOW, new events overtake them.
            dry_run: only count the events; send nothing.
            wait: True: this call sends the events, and returns when all are sent. False: it returns at once, and
                the system's worker sends them: the replay goes on when this process or that worker ends.
            on_progress: called with the number of events sent so far, and with None: nobody has counted them. Not
                with ``wait=False``.

        Returns:
            The number of events, and the ids of the messages. With ``wait=False``, the replay: follow it with
            ``replay_progress``, and end it with ``cancel_replay``.

        Raises:
            UnknownSubscription: there is no such subscription.
            InvalidMessage: no event is selected, another argument is invalid, or the subscription was removed.
            UnknownMessage: the ledger has no such conversation or event.
            ConfigurationError: there is no ledger.
            StoreUnavailable, BrokerUnavailable: a server failed; the error's ``message_ids`` were sent.
        """
        sender = from_agent or self.app.message_factory.sender_of(HandlerName("#", "replay"))
        replayer = EventReplayer(self.app)
        selection = Selection.of(
            replayer.log,
            since=since,
            until=until or self.app.reference_clock.now(),
            conversation=conversation,
            message_ids=message_ids,
            topic=topic,
            where=where,
            limit=limit,
        )
        pace = Pace(per_second=per_second, speed=speed)
        subscription = self.app.subscriptions.read().get(subscriber)
        if subscription.removed_at is not None:
            raise InvalidMessage(f"the subscription {subscriber} was removed: resubscribe first")
        if wait:
            return replayer.replay(subscription, selection, pace, sender, priority, dry_run, on_progress)
        if dry_run:
            raise InvalidMessage("dry_run=True counts at once: leave out wait=False")
        if conversation is not None:
            next(selection.events(replayer.log, subscription), None)  # raises if there is none
        replay = self._replays.add(
            subscriber,
            selection.to_json(),
            per_second=per_second,
            speed=speed,
            from_agent=sender,
            priority=Priority.of(priority),
        )
        self._wake_worker(replay)
        return replay

    def replays(self, limit: int = 100) -> list[Replay]:
        """Return the replays that were asked for with ``wait=False``, the newest first. They are kept for 90 days.

        Args:
            limit: how many at most.

        Raises:
            ConfigurationError: there is no ledger.
            StoreUnavailable: the ledger does not answer.
        """
        return self._replays.all(limit)

    def replay_progress(self, replay_id: str) -> Replay:
        """Return a replay as it is now: its state, the number of events sent, and how far it has come.

        Args:
            replay_id: its id.

        Raises:
            UnknownReplay: there is no such replay.
            ConfigurationError, StoreUnavailable: as ``replays``.
        """
        return self._replays.get(replay_id)

    def cancel_replay(self, replay_id: str) -> Replay:
        """Cancel a replay, and return it. At most the events that are being sent now, up to 100, still follow.

        Events that it has sent before are handled. A replay that has ended stays as it is.

        Args:
            replay_id: its id.

        Raises:
            UnknownReplay: there is no such replay.
            ConfigurationError, StoreUnavailable: as ``replays``.
        """
        return self._replays.cancel(replay_id)

    @property
    def _replays(self) -> LedgerReplays:
        from waooaw_celery.ledger.events.replays import LedgerReplays

        return LedgerReplays(self.app.database)

    def _wake_worker(self, replay: Replay) -> None:
        """Tell the system's worker of a replay. If the broker does not answer, it begins when beat runs again."""
        options = {"queue": system_queue(), "expires": _TASK_SECONDS, "ignore_result": True, "retry": False}
        try:
            self.app.send_task(REPLAY_TASK, **options)  # type: ignore[arg-type]  # other options
        except OperationalError as error:
            extra = {"action": "replay_begins_later", "replay_id": replay.replay_id}
            logger.warning("the replay %s begins later: %s", replay.replay_id, error, extra=extra)
