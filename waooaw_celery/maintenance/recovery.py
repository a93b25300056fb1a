"""One run of the recovery: looks for what is open in the ledger, asks the broker, and publishes what is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import uuid4

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError
from sqlalchemy import func, select

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import WaooawError
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.read import lost as ledger
from waooaw_celery.ledger.read.lost import LostMessage, LostMessageCandidate, LostMessageRules
from waooaw_celery.maintenance.broker_inventory import BrokerInventory, OutOfTime, WantedMessages, broker_inventory
from waooaw_celery.maintenance.republish import republish
from waooaw_celery.messages.validation import check_agent_name

logger = logging.getLogger(__name__)

#: Seconds after which a run goes on with nothing more: the next one does.
RUN_SECONDS = 25.0
#: Open messages that are looked for together, and those that are claimed and published together.
LOOK, PART = 50_000, 200
#: Seconds between two looks: what neither finds is lost, and what a worker has just told is in the ledger.
PAUSE = 3.0
#: Messages that a run publishes at most.
MAX_MESSAGES = 10_000
#: Key of the advisory lock under which one run goes on at a time: "waooar" in ASCII.
_LOCK = 0x77616F6F6172
#: What brokers raise.
_BROKER_ERRORS = (OperationalError, KombuError, AMQPError, RedisError, OSError)


@dataclass(slots=True, kw_only=True)
class RecoveryResult:
    """What a run did, or would do.

    Attributes:
        looked_for: how many open messages were old enough to be looked for in the broker.
        recovered: the ids of those that were published again.
        given_up: the ids of those that were lost too often, and have failed.
        failed: the ids of those that could not be published.
        busy: whether another run was going on, so that this one did nothing.
        unfinished: whether there was more to look for than time, or more to publish than the limit.
        error: why the broker could not be asked or given a message, or None.
    """

    looked_for: int = 0
    recovered: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    busy: bool = False
    unfinished: bool = False
    error: str | None = None


class Recovery:
    """Publishes again what the broker lost. It is safe to run twice at once.

    Args:
        app: whose ledger and broker are compared.
        after: seconds for which nothing must have been heard of a message; None: ``waooaw_recover_after``.
        pause: seconds between two looks into the broker.

    Raises:
        ConfigurationError: there is no ledger.
    """

    def __init__(self, app: AgentApp, after: float | None = None, pause: float = PAUSE) -> None:
        self._app, self._database, self._pause = app, app.database, pause
        seconds = app.settings.recover_after if after is None else after
        self._after = timedelta(seconds=seconds)
        self._lost = timedelta(seconds=app.settings.lost_seconds)

    def run(self, *, dry_run: bool = False, agent: str | None = None, limit: int = MAX_MESSAGES) -> RecoveryResult:
        """Look once, and publish what is lost.

        Args:
            dry_run: only tell what would be published.
            agent: only messages to this agent; None: to all.
            limit: how many to publish at most.

        Returns:
            What was done. That the broker is away is told there, and logged once.

        Raises:
            AuditUnavailable: the ledger does not answer.
            InvalidMessage: this cannot be an agent's name.
        """
        if agent is not None:
            check_agent_name(agent)
        done = RecoveryResult()
        deadline = time.monotonic() + RUN_SECONDS
        with self._alone() as alone:
            if not alone:
                done.busy = True
                return done
            try:
                with broker_inventory(self._app) as broker:
                    if broker is None:
                        done.error = f"a broker of the kind {self._app.driver!r} cannot be asked what it has"
                    else:
                        self._run(broker, done, dry_run, agent, limit, deadline)
            except OutOfTime:
                done.unfinished = True
            except _BROKER_ERRORS as error:
                done.error = f"the broker does not answer: {error}"
            finally:
                self._app.receipts.flush()
        self._tell(done, dry_run)
        return done

    def _run(
        self,
        broker: BrokerInventory,
        done: RecoveryResult,
        dry_run: bool,
        agent: str | None,
        limit: int,
        deadline: float,
    ) -> None:
        rules = LostMessageRules(after=self._after, lost=self._lost, exact=broker.exact)
        for batch in self._candidates(rules, agent):
            done.looked_for += len(batch)
            with self._database.begin("tell the time") as connection:
                looked_at = now_in(connection)
            missing = self._missing(broker, batch, deadline)
            for start in range(0, len(missing), PART):
                left = limit - len(done.recovered) - len(done.failed)
                if left <= 0 or time.monotonic() > deadline:
                    raise OutOfTime
                part = missing[start : start + min(PART, left)]
                self._recover(part, rules, looked_at, done, dry_run)
                if len(part) < len(missing[start : start + PART]):
                    raise OutOfTime

    def _candidates(self, rules: LostMessageRules, agent: str | None) -> Iterator[list[LostMessageCandidate]]:
        """Yield what is to be looked for, beginning anywhere: another run begins with what one has no time for."""
        begin = str(uuid4())
        for first, upto in ((begin, None), ("", begin)):
            behind = first
            while True:
                with self._database.begin("look for open messages") as connection:
                    batch = ledger.candidates(connection, rules, behind=behind, upto=upto, agent=agent, count=LOOK)
                if batch:
                    yield batch
                if len(batch) < LOOK:
                    break
                behind = batch[-1].message_id

    def _missing(
        self, broker: BrokerInventory, batch: Sequence[LostMessageCandidate], deadline: float
    ) -> list[str]:
        """Return the ids of those that the broker does not have, the oldest first."""
        wanted: WantedMessages = {}
        for each in batch:
            wanted.setdefault(each.agent, set()).add(each.message_id)
        missing = broker.missing(wanted, deadline)
        if not missing:
            return []
        # What was on its way from one place to another is found now; what is told of it late is in the ledger.
        time.sleep(self._pause)
        missing = broker.missing(missing, deadline)
        ids = set[str]().union(*missing.values()) - self._app.ledger.spool.message_ids()
        return [each.message_id for each in sorted(batch, key=lambda each: each.sent_at) if each.message_id in ids]

    def _recover(
        self, ids: Sequence[str], rules: LostMessageRules, looked_at: datetime, done: RecoveryResult, dry_run: bool
    ) -> None:
        """Claim those of these messages that are lost, and publish them."""
        with ledger.claiming(self._database) as connection:
            found = ledger.judge(connection, ids, rules, looked_at)
            if not dry_run:
                ledger.claim(connection, found)
        done.given_up += [each.message.message_id for each in found if each.given_up]
        again = [each for each in found if not each.given_up]
        if dry_run:
            done.recovered += [each.message.message_id for each in again]
        elif again:
            self._publish(again, done)

    def _publish(self, again: Sequence[LostMessage], done: RecoveryResult) -> None:
        published = []
        try:
            with self._app.circuit_breaker.watching(), self._app.producer_or_acquire() as producer:
                for each in again:
                    message_id = each.message.message_id
                    try:
                        republish(self._app, producer, each)
                    except (WaooawError, ValueError, TypeError) as error:  # this one only; others go on
                        done.failed.append(message_id)
                        extra = {"action": "not_recovered", "message_id": message_id}
                        logger.warning("message %s cannot be published again: %s", message_id, error, extra=extra)
                    else:
                        published.append(each.message)
        finally:
            done.recovered += [message.message_id for message in published]
            if published:
                self._app.receipts.sent(published)()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Tell whether no other run goes on, and keep others out while the block runs.

        On SQLite two runs go on at once, and claim one after the other.
        """
        if not self._database.is_postgresql:
            yield True
            return
        with self._database.begin("take the lock of the recovery", 10 * RUN_SECONDS) as connection:
            yield bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))))

    def _tell(self, done: RecoveryResult, dry_run: bool) -> None:
        """Write one line to the log, when there is something to tell."""
        if dry_run:
            return
        counts = {"recovered": len(done.recovered), "given_up": len(done.given_up), "failed": len(done.failed)}
        action = "recovered" if done.error is None else "not_recovered"
        extra = {"action": action, "looked_for": done.looked_for, **counts, "message_ids": done.recovered[:PART]}
        if done.error is not None:
            logger.warning("messages cannot be recovered: %s", done.error, extra=extra)
        elif any(counts.values()):
            logger.warning(
                "of %d open messages the broker had lost some: %d were published again, %d given up, %d failed",
                done.looked_for,
                *counts.values(),
                extra=extra,
            )
