"""The time for which a recurring workflow is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab
from celery.schedules import schedule as interval

from waooaw_celery.workflows.schedule import last_time

NOW = datetime(2026, 11, 29, 2, 30, 15, tzinfo=UTC)  # a Sunday


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (crontab(), NOW.replace(second=0)),
        (crontab(minute=30, hour=2), NOW.replace(second=0)),
        (crontab(minute=31, hour=2), NOW.replace(day=28, minute=31, second=0)),
        (crontab(minute=0, hour="*/6", day_of_week="mon"), datetime(2026, 11, 23, 18, tzinfo=UTC)),
        (crontab(minute=0, hour=0, day_of_week="sun"), datetime(2026, 11, 29, tzinfo=UTC)),
        (crontab(minute=0, hour=0, day_of_month=29, month_of_year=2), datetime(2024, 2, 29, tzinfo=UTC)),
        (interval(timedelta(hours=1)), NOW.replace(minute=0, second=0)),
        (interval(timedelta(seconds=10)), NOW.replace(second=10)),
    ],
)
def test_it_is_the_newest_time_that_is_not_in_the_future(when: interval, expected: datetime) -> None:
    """Also if that was yesterday, or years ago."""
    assert last_time(when, NOW) == expected


def test_it_is_in_the_time_zone_of_the_schedule() -> None:
    """The hour of a crontab is one of that zone."""
    now = NOW.astimezone(ZoneInfo("Asia/Kolkata"))  # 08:00:15
    assert last_time(crontab(minute=0, hour=8), now) == NOW.replace(second=0)


def test_an_interval_has_another_time_in_each_of_two_hours_that_look_the_same() -> None:
    """Where the clock is set back, the ids of the workflows differ."""
    first = datetime(2026, 10, 25, 0, tzinfo=UTC)
    moments = [(first + timedelta(minutes=10 * n)).astimezone(ZoneInfo("Europe/Berlin")) for n in range(12)]
    found = [last_time(interval(timedelta(minutes=10)), moment) for moment in moments]
    assert len({f"{time:%Y-%m-%dT%H-%M-%S}" for time in found}) == 12
