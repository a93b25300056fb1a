"""The recovery: finds open messages that the broker has lost, and publishes them again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
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
from waooaw_celery.ledger.read.lost import (
    LostMessage,
    LostMessageCandidate,
    LostMessageRules,
    claim_transaction,
    find_candidates,
    find_lost,
    record_recoveries,
)
from waooaw_celery.maintenance.broker_inventory import BrokerInventory, OutOfTime, WantedMessages, broker_inventory
from waooaw_celery.maintenance.republish import republish
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.messages.wording import counted

logger = get_logger(__name__)

#: Seconds after which a run starts nothing more; the next run continues.
RUN_SECONDS = 25.0
#: Open messages that are looked up together, and lost messages that are claimed and published together.
LOOKUP_BATCH, PUBLISH_BATCH = 50_000, 200
#: Seconds between two passes over the broker. A message on its way is found by the second pass, and what a worker
#: has just recorded is in the ledger by then.
PAUSE_SECONDS = 3.0
#: Most messages that a run publishes.
MAX_MESSAGES = 10_000
#: The key of the advisory lock that a run holds: "waooar" in ASCII.
_LOCK_KEY = 0x77616F6F6172
#: What the clients of brokers raise.
_BROKER_ERRORS = (OperationalError, KombuError, AMQPError, RedisError, OSError)


@dataclass(slots=True, kw_only=True)
class RecoveryResult:
    """The result of a run, or of a dry run.

    Attributes:
        looked_for: how many open messages were old enough to be looked up in the broker.
        recovered: the ids of the messages that were published again.
        given_up: the ids of the messages that were lost too often, and have failed.
        failed: the ids of the messages that could not be published.
        left: how many were left alone, because a living worker of their agent writes to another ledger or to none.
        busy: whether another run was active, so that this one did nothing.
        unfinished: whether the time or the limit was too small for all messages.
        error: why the broker could not be asked or could not take a message, or None.
    """

    looked_for: int = 0
    recovered: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: int = 0
    busy: bool = False
    unfinished: bool = False
    error: str | None = None


class Recovery:
    """Publishes messages that the broker lost. Concurrent runs are safe.

    Args:
        app: the application whose ledger and broker are compared.
        after: seconds for which nothing must have been recorded of a message; None: ``waooaw_recover_after``.
        pause: seconds between the two passes over the broker.

    Raises:
        ConfigurationError: the application has no ledger.

    Example:
        >>> Recovery(app).run(dry_run=True).recovered
        ['0198c0f2-…']
    """

    def __init__(self, app: AgentApp, after: float | None = None, pause: float = PAUSE_SECONDS) -> None:
        self._app, self._database, self._pause = app, app.database, pause
        seconds = app.settings.recover_after if after is None else after
        self._min_silence = timedelta(seconds=seconds)
        self._max_handling = timedelta(seconds=app.settings.lost_seconds)

    def run(
        self,
        *,
        dry_run: bool = False,
        agent: str | None = None,
        limit: int = MAX_MESSAGES,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> RecoveryResult:
        """Look for lost messages once, and publish them.

        Args:
            dry_run: only return what would be published.
            agent: only messages to this agent; None: to all agents.
            limit: how many messages to publish at most.
            on_progress: called with the number of open messages looked up so far, and with None: nobody has
                counted them.

        Returns:
            What was done. A broker that does not answer is reported there and logged once, not raised.

        Raises:
            AuditUnavailable: the ledger does not answer.
            InvalidMessage: this is not a valid agent name.
        """
        if agent is not None:
            check_agent_name(agent)
        result = RecoveryResult()
        deadline = time.monotonic() + RUN_SECONDS
        with self._lock() as is_locked:
            if not is_locked:
                result.busy = True
                return result
            try:
                with broker_inventory(self._app) as inventory:
                    if inventory is None:
                        result.error = (
                            f"the broker {self._app.driver!r} cannot list its messages: "
                            "use Redis, Valkey or RabbitMQ"
                        )
                    else:
                        self._run(inventory, result, dry_run, agent, limit, deadline, on_progress)
            except OutOfTime:
                result.unfinished = True
            except _BROKER_ERRORS as error:
                result.error = f"the broker does not answer: {error}"
            finally:
                self._app.receipts.flush()
        if not dry_run:
            _log_result(result)
        return result

    def _run(
        self,
        inventory: BrokerInventory,
        result: RecoveryResult,
        dry_run: bool,
        agent: str | None,
        limit: int,
        deadline: float,
        on_progress: Callable[[int, int | None], None] | None,
    ) -> None:
        rules = LostMessageRules(
            min_silence=self._min_silence, max_handling=self._max_handling, exact=inventory.exact
        )
        outside = self._outside()
        for every_candidate in self._candidates(rules, agent):
            candidates = [each for each in every_candidate if each.agent not in outside]
            result.looked_for += len(candidates)
            result.left += len(every_candidate) - len(candidates)
            if on_progress is not None:
                on_progress(result.looked_for, None)
            with self._database.begin("read the database's time") as connection:
                looked_at = now_in(connection)
            missing = self._missing(inventory, candidates, deadline)
            for start in range(0, len(missing), PUBLISH_BATCH):
                left = limit - len(result.recovered) - len(result.failed)
                if left <= 0 or time.monotonic() > deadline:
                    raise OutOfTime
                batch = missing[start : start + min(PUBLISH_BATCH, left)]
                self._recover(batch, rules, looked_at, result, dry_run)
                if len(batch) < len(missing[start : start + PUBLISH_BATCH]):
                    raise OutOfTime

    def _outside(self) -> set[str]:
        """Return the agents with a living worker that does not write to this ledger.

        It may have handled a message of which this ledger knows nothing: a worker of an older version does not
        refuse it.
        """
        own = self._app.ledger_id
        return {each.name for each in self._app.registry.everywhere() if set(each.ledgers.values()) - {own}}

    def _candidates(self, rules: LostMessageRules, agent: str | None) -> Iterator[list[LostMessageCandidate]]:
        """Yield batches of candidates from a random id on, so that runs out of time cover all of them in turn."""
        start = str(uuid4())
        for first, up_to in ((start, None), ("", start)):
            after = first
            while True:
                with self._database.begin("look for open messages") as connection:
                    batch = find_candidates(
                        connection, rules, after=after, up_to=up_to, agent=agent, limit=LOOKUP_BATCH
                    )
                if batch:
                    yield batch
                if len(batch) < LOOKUP_BATCH:
                    break
                after = batch[-1].message_id

    def _missing(
        self, inventory: BrokerInventory, candidates: Sequence[LostMessageCandidate], deadline: float
    ) -> list[str]:
        """Return the ids of the candidates that the broker does not have, the oldest first."""
        wanted: WantedMessages = {}
        for each in candidates:
            wanted.setdefault(each.agent, set()).add(each.message_id)
        missing = inventory.missing(wanted, deadline)
        if not missing:
            return []
        time.sleep(self._pause)
        missing = inventory.missing(missing, deadline)
        ids = set[str]().union(*missing.values()) - self._app.ledger.spool.message_ids()
        by_age = sorted(candidates, key=lambda each: each.sent_at)
        return [each.message_id for each in by_age if each.message_id in ids]

    def _recover(
        self,
        ids: Sequence[str],
        rules: LostMessageRules,
        looked_at: datetime,
        result: RecoveryResult,
        dry_run: bool,
    ) -> None:
        """Claim those messages that are lost, and publish them."""
        with claim_transaction(self._database) as connection:
            lost = find_lost(connection, ids, rules, looked_at)
            if not dry_run:
                record_recoveries(connection, lost)
        result.given_up += [each.message.message_id for each in lost if each.given_up]
        to_publish = [each for each in lost if not each.given_up]
        if dry_run:
            result.recovered += [each.message.message_id for each in to_publish]
        elif to_publish:
            self._publish(to_publish, result)

    def _publish(self, lost: Sequence[LostMessage], result: RecoveryResult) -> None:
        published = []
        try:
            with self._app.circuit_breaker.watching(), self._app.producer_or_acquire() as producer:
                for each in lost:
                    message_id = each.message.message_id
                    try:
                        republish(self._app, producer, each)
                    except (WaooawError, ValueError, TypeError) as error:  # only this message cannot be encoded
                        result.failed.append(message_id)
                        extra = {"action": "not_recovered", "message_id": message_id}
                        logger.warning(
                            "the lost message %s could not be republished: %s", message_id, error, extra=extra
                        )
                    else:
                        published.append(each.message)
        finally:
            result.recovered += [message.message_id for message in published]
            if published:
                self._app.receipts.prepare_sent(published)()

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Keep other runs out while the block runs; yields False if another one is active.

        On SQLite concurrent runs are not kept out; they claim messages one after the other.
        """
        if not self._database.is_postgresql:
            yield True
            return
        with self._database.begin("take the lock of the recovery", 10 * RUN_SECONDS) as connection:
            yield bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))))


def _log_result(result: RecoveryResult) -> None:
    """Log one line if the run published, gave up or failed to publish something."""
    counts = {"recovered": len(result.recovered), "given_up": len(result.given_up), "failed": len(result.failed)}
    action = "recovered" if result.error is None else "not_recovered"
    ids = result.recovered[:PUBLISH_BATCH]
    if result.left:
        logger.warning(
            "%s not recovered: a living worker of the recipient writes to another ledger or to none, and may have "
            "handled them. `waooaw agents` shows which; set the same waooaw_database_url for all processes",
            counted(result.left, "open message"),
            extra={"action": "not_recovered_other_ledger", "left": result.left},
        )
    extra = {"action": action, "looked_for": result.looked_for, **counts, "message_ids": ids}
    if result.error is not None:
        logger.warning("lost messages cannot be recovered: %s", result.error, extra=extra)
    elif any(counts.values()):
        logger.warning(
            "recovered messages that the broker had lost: %d; given up: %d; could not be published: %d "
            "(open messages checked: %d)",
            *counts.values(),
            result.looked_for,
            extra=extra,
        )
