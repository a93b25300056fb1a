"""Whether beat looks at its schedule, as its health shows it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery.beat import Service

from waooaw_celery import create_app
from waooaw_celery.maintenance.beat_health import MAX_LATE_SECONDS, MAX_LOOP_INTERVAL, late_look, live_problems
from waooaw_celery.maintenance.tasks import register_periodic_tasks


def beat(looked_ago: float | None, broker_url: str = "memory://") -> Any:
    """Return a beat that has looked at its schedule so many seconds ago."""
    app = create_app(broker_url=broker_url)
    register_periodic_tasks(app)
    service: Any = Service(app)
    service.effective_max_interval = app.conf.beat_max_loop_interval
    service._last_tick = None if looked_ago is None else time.monotonic() - looked_ago
    return service


@pytest.mark.parametrize("ago", [None, 0.0, MAX_LOOP_INTERVAL + MAX_LATE_SECONDS - 5])
def test_a_beat_that_looks_at_its_schedule_is_live(ago: float | None) -> None:
    """Also one that has just started, or sleeps until something is due."""
    assert late_look(beat(ago)) == {}


def test_a_beat_that_hangs_is_not_live() -> None:
    """Within a minute and a half."""
    service = beat(MAX_LOOP_INTERVAL + MAX_LATE_SECONDS + 5)
    assert list(live_problems(service)) == ["schedule"]
    assert "65 s ago" in late_look(service)["schedule"]


def test_a_beat_that_waits_for_the_broker_is_live() -> None:
    """A new one would wait too."""
    service = beat(1000.0, "redis://127.0.0.1:9/0")  # the discard port
    assert late_look(service)
    assert live_problems(service) == {}


def test_a_project_may_set_how_often_beat_looks() -> None:
    """The setting of Celery wins."""
    app = create_app(broker_url="memory://", beat_max_loop_interval=7)
    register_periodic_tasks(app)
    assert app.conf.beat_max_loop_interval == 7
