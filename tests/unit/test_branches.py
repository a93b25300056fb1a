"""Branches of workflows whose decision another process has recorded while the function waited here."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from waooaw_celery.workflows.engine.branches import gather, race
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.states import StepKind, StepStatus


def run_with_decision(path: str, kind: StepKind) -> tuple[Any, Any]:
    """Return a run, and a function with which another process decides for the second branch."""
    records: dict[str, StepRecord] = {}

    def decide() -> None:
        record = StepRecord(path=path, kind=kind, started_at=datetime.now(UTC))
        record.status, record.outcome = StepStatus.COMPLETED, 1
        records[path] = record

    changes = SimpleNamespace(records=records)  # without complete(): nothing else may be recorded
    ignore = SimpleNamespace(changes=changes, **dict.fromkeys(("reach", "adopt", "drop"), lambda _: None))
    return ignore, decide


def test_a_race_keeps_the_decision_of_another_process() -> None:
    """Although the first branch has ended here too."""
    run, decide = run_with_decision("race#1", StepKind.RACE)

    async def first() -> str:
        decide()
        return "first"

    async def second() -> str:
        await asyncio.sleep(0)
        return "second"

    async def main() -> tuple[int, Any]:
        return await race(run, "race#1", [first(), second()])

    assert asyncio.run(main()) == (1, "second")


def test_a_gather_keeps_the_failure_that_another_process_took() -> None:
    """Although the first branch has failed here too."""
    run, decide = run_with_decision("gather#1", StepKind.GATHER)

    async def first() -> None:
        decide()
        raise ValueError("first")

    async def second() -> None:
        await asyncio.sleep(0)
        raise ValueError("second")

    async def main() -> Any:
        return await gather(run, "gather#1", [first(), second()], return_exceptions=False)

    with pytest.raises(ValueError, match="second"):
        asyncio.run(main())
