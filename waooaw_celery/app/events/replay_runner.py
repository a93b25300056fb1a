"""Carries out the replays that nobody waits for: the system's worker runs it, a few seconds at a time."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.events.replay import BATCH_SIZE, EventReplayer, Pace, batches
from waooaw_celery.app.events.selection import Selection
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, StoreUnavailable, WaooawError
from waooaw_celery.ledger.events.replays import Claim, LedgerReplays, ReplayState
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.wording import counted
from waooaw_celery.store.subscriptions import Subscription

if TYPE_CHECKING:
    from waooaw_celery.ledger.read.records import AuditRecord

logger = get_logger(__name__)

#: Seconds for which one task works on replays, so that other tasks of the system's worker get their turn.
SLICE_SECONDS = 10.0
#: Seconds after which a replay goes on that a server's failure stopped.
RETRY_SECONDS = 10.0
#: With a pace of many events per second, this many batches are sent per second.
_BATCHES_PER_SECOND = 10
#: Longest sleep in seconds between two looks at whether a replay was cancelled.
_LOOK_SECONDS = 1.0
#: Most characters of an error that are recorded.
_MAX_ERROR = 500


def run_replays(app: AgentApp, seconds: float = SLICE_SECONDS) -> float | None:
    """Work on the replays that are due.

    Several workers may do so at once: each replay is carried out by one of them at a time.

    Args:
        app: an application with a ledger.
        seconds: how long.

    Returns:
        The seconds until a replay is due that no worker works on; None: there is none.

    Raises:
        StoreUnavailable: the ledger does not answer.
    """
    ends_at = time.monotonic() + seconds
    replays = LedgerReplays(app.database)
    while time.monotonic() < ends_at and (claim := replays.claim()):
        _Run(app, replays, claim, ends_at).run()
    return replays.due_in()


class _ClaimLost(Exception):
    """The replay must not go on."""


class _Run:
    """A worker's turn at one replay.

    Args:
        app: an application with a ledger.
        replays: the replays in the ledger.
        claim: the worker's claim of the replay.
        ends_at: the end of the turn, by the monotonic clock.
    """

    def __init__(self, app: AgentApp, replays: LedgerReplays, claim: Claim, ends_at: float) -> None:
        self._app, self._replays, self._claim, self._ends_at = app, replays, claim, ends_at
        self._replay = claim.replay
        self._pace = Pace(per_second=claim.replay.per_second, speed=claim.replay.speed)
        self._replayer = EventReplayer(app)
        self._kept_at = time.monotonic()

    def run(self) -> None:
        """Send events until the replay or the turn ends."""
        id_ = self._replay.replay_id
        try:
            subscription = self._app.subscriptions.read().get(self._replay.subscriber)
            if subscription.removed_at is not None:
                raise InvalidMessage(f"the subscription {subscription.subscriber} was removed: resubscribe first")
            self._send(subscription)
        except (StoreUnavailable, BrokerUnavailable) as error:
            extra = {"action": "replay_interrupted", "replay_id": id_}
            logger.warning("the replay %s goes on in %g s: %s", id_, RETRY_SECONDS, error, extra=extra)
            self._replays.release(self._claim, RETRY_SECONDS, str(error)[:_MAX_ERROR])
        except _ClaimLost:  # it was cancelled, or another worker goes on with it
            return
        except WaooawError as error:
            logger.warning("the replay %s failed: %s", id_, error, extra={"action": "replay_failed"})
            self._replays.end(self._claim, ReplayState.FAILED, str(error)[:_MAX_ERROR])
        except Exception as error:
            self._replays.end(self._claim, ReplayState.FAILED, repr(error)[:_MAX_ERROR])
            raise

    def _send(self, subscription: Subscription) -> None:
        selected = Selection.from_json(self._replay.selection).events(
            self._replayer.log, subscription, self._claim.position, self._replay.events, self._keep_claim
        )
        position, events = self._claim.position, self._replay.events
        due_at = None
        for records in batches(selected, self._batch_size()):
            # The first events of a turn are due: the replay was not claimed before. They are sent even if it took
            # longer to find them than a turn may take, so that each turn makes progress.
            if due_at is None or position is None:
                due_at = time.monotonic()
            else:
                due_at += self._pause(position, records)
                if max(due_at, time.monotonic()) > self._ends_at:
                    self._replays.release(self._claim, max(due_at - time.monotonic(), 0.0))
                    return
            self._sleep_until(due_at)
            self._replayer.send_once(
                subscription, records, self._replay.replay_id, self._replay.from_agent, self._replay.priority
            )
            events += len(records)
            position = records[-1].receipt.sent_at, records[-1].receipt.message_id
            if not self._replays.advance(self._claim, len(records), position):
                raise _ClaimLost
        self._replays.end(self._claim, ReplayState.FINISHED)
        extra = {"action": "replayed", "replay_id": self._replay.replay_id}
        logger.info("replayed %s to %s", counted(events, "event"), subscription.subscriber, extra=extra)

    def _batch_size(self) -> int:
        if self._pace.free:
            return BATCH_SIZE
        return min(max(int((self._pace.per_second or 0) / _BATCHES_PER_SECOND), 1), BATCH_SIZE)

    def _pause(self, position: tuple[datetime, str], records: list[AuditRecord]) -> float:
        """Return the seconds between the event before and these events."""
        passed = records[-1].receipt.sent_at - position[0]
        return self._pace.due(len(records), passed)

    def _sleep_until(self, due_at: float) -> None:
        """Wait until events are due.

        Raises:
            _ClaimLost: the replay must not go on.
        """
        while (pause := due_at - time.monotonic()) > 0:
            time.sleep(min(pause, _LOOK_SECONDS))
            self._keep_claim()

    def _keep_claim(self) -> None:
        """Extend the claim about once a second.

        Raises:
            _ClaimLost: the replay must not go on.
        """
        if time.monotonic() - self._kept_at >= _LOOK_SECONDS:
            self._kept_at = time.monotonic()
            if not self._replays.advance(self._claim):
                raise _ClaimLost
