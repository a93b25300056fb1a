"""Writes the turns of all workflows of a process: those that come while it writes share the next transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from waooaw_celery.errors import AuditUnavailable, StoreUnavailable
from waooaw_celery.ledger.write.inserter import is_permanent_error
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.workflows.journal.journal import Journal
from waooaw_celery.workflows.journal.records import Turn, TurnResult

logger = get_logger(__name__)

#: Turns that are written in one transaction.
_BATCH = 200
#: Seconds between two attempts while the database does not answer.
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class TurnWriter:
    """Writes turns in their order. Use it on one event loop.

    While the database does not answer, turns wait and are tried again: their effects have happened, and only their
    record is missing. If another process takes a workflow over meanwhile, its turns are refused.

    Args:
        journal: where the turns are written.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: deque[tuple[Turn, asyncio.Future[TurnResult]]] = deque()
        self._executor = ThreadPoolExecutor(1, "waooaw-workflow-journal")
        self._task: asyncio.Task[None] | None = None

    async def write(self, turn: Turn) -> TurnResult:
        """Write a turn, and return what became of it."""
        written: asyncio.Future[TurnResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, written))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await written

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
                try:
                    results = await loop.run_in_executor(self._executor, self._write, [turn for turn, _ in batch])
                except AuditUnavailable as error:
                    if is_permanent_error(error):
                        await self._write_singly(batch)
                    else:
                        self._waiting.extendleft(reversed(batch))
                        await self._pause(failures, error)
                        failures += 1
                except Exception as error:  # noqa: BLE001 - a defect, or a value that the database refuses
                    self._fail(batch, error)
                else:
                    failures = 0
                    for (_, written), result in zip(batch, results, strict=True):
                        if not written.done():
                            written.set_result(result)
        finally:
            self._task = None

    async def _write_singly(self, batch: list[tuple[Turn, asyncio.Future[TurnResult]]]) -> None:
        """Write turns one by one, to find the one that the database refuses."""
        loop = asyncio.get_running_loop()
        for place, (turn, written) in enumerate(batch):
            try:
                [result] = await loop.run_in_executor(self._executor, self._write, [turn])
            except Exception as error:  # noqa: BLE001 - whoever waits for the turn gets it
                if isinstance(error, AuditUnavailable) and not is_permanent_error(error):
                    self._waiting.extendleft(reversed(batch[place:]))  # before the newer turns of their workflows
                    return
                self._fail([(turn, written)], error)
            else:
                if not written.done():
                    written.set_result(result)

    def _write(self, turns: list[Turn]) -> list[TurnResult]:
        return self._journal.write(turns)

    def _fail(self, batch: list[tuple[Turn, asyncio.Future[TurnResult]]], error: Exception) -> None:
        for _, written in batch:
            if not written.done():
                written.set_exception(error)

    async def _pause(self, failures: int, error: StoreUnavailable) -> None:
        """Wait before the next attempt; log one line for each outage."""
        if not failures:
            logger.warning(
                "%s; the outcomes of workflow steps wait in memory",
                error,
                extra={"action": "workflow_journal_waits"},
            )
        await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])

    def close(self) -> None:
        """End the thread, and close its connection."""
        self._executor.submit(self._journal.close)
        self._executor.shutdown(wait=False)
