"""The server is killed, and it freezes, while messages are published and handled."""

from __future__ import annotations

from pathlib import Path

from faults.lane import OPTIONS, lone_lane
from waooaw_celery.settings import CELERY_DEFAULTS

#: How often a publish is tried.
ATTEMPTS = 1 + CELERY_DEFAULTS["task_publish_retry_policy"]["max_retries"]


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    """A server with a log of all commands is killed and started again: the worker goes on, nothing is lost."""
    with lone_lane("ours", tmp_path) as lane:
        lane.start()
        worker = lane.worker
        with lane.load():
            for _ in range(2):
                before = len(lane.effects())
                unknown = list(lane.outcomes().values()).count("unknown")
                lane.until(lambda before=before: len(lane.effects()) > before + 20, "load")  # type: ignore[misc]
                lane.server.kill()
                lane.until(
                    lambda unknown=unknown: list(lane.outcomes().values()).count("unknown") > unknown,  # type: ignore[misc]
                    "a failure of the publisher",
                )
                lane.server.start()
        after = lane.publish()
        lane.until(lambda: lane.handled(after), "life after it")
        lane.drain()
        account = lane.account()
        assert worker is not None
        assert worker.poll() is None
    assert account.accepted > 40
    assert not account.lost
    assert not account.dead


def test_a_frozen_server_holds_nobody_up(tmp_path: Path) -> None:
    """A server freezes for longer than the timeout: publishers are told in time, the worker goes on afterwards."""
    with lone_lane("ours", tmp_path) as lane:
        lane.start()
        worker = lane.worker
        with lane.load():
            before = len(lane.effects())
            lane.until(lambda: len(lane.effects()) > before + 20, "load")
            lane.server.freeze()
            lane.until(lambda: "unknown" in lane.outcomes().values(), "a failure of the publisher")
            lane.server.thaw()
        after = lane.publish()
        lane.until(lambda: lane.handled(after), "life after it")
        lane.drain()
        account = lane.account()
        assert worker is not None
        assert worker.poll() is None
    assert OPTIONS["socket_timeout"] < account.slowest < ATTEMPTS * (OPTIONS["socket_timeout"] + 1)
    assert not account.lost
    assert not account.dead
