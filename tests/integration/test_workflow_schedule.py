"""Recurring workflows: beat starts them, and two beats start each once."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path

import pytest
from celery.schedules import crontab
from process_pool import spawn
from support import Broker, until
from test_workflows import Probe

from waooaw_celery.agents import schedule_workflow
from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.testing.embedded import end

BEAT = """
import json
import os
from waooaw_celery import create_app
from waooaw_celery.agents import register_periodic_tasks, schedule_workflow
app = create_app("beat", **json.loads(os.environ["BEAT_SETTINGS"]))
register_periodic_tasks(app)
name = os.environ["BEAT_NAME"]
schedule_workflow(app, name, f"{name}.local", 2, {"rounds": 1, "word": "beat"})
"""


@pytest.mark.slow
def test_two_beats_start_each_workflow_once(ledger_broker: Broker, tmp_path: Path) -> None:
    """The id of each is made of the time for which it was due."""
    (tmp_path / "beat_app.py").write_text(BEAT)
    with closing(ledger_broker.app()) as app, ExitStack() as stack:
        probe = Probe(ledger_broker, app, tmp_path / "effects", "-P", "solo")
        stack.callback(end, probe.process)
        settings = {
            "broker_url": ledger_broker.url,
            "result_backend": ledger_broker.redis_url,
            "waooaw_database_url": ledger_broker.database_url,
            "waooaw_spool_folder": str(tmp_path / "spool"),
            "waooaw_sender": "beat",
        }
        env = os.environ | {"BEAT_SETTINGS": json.dumps(settings), "BEAT_NAME": probe.name}
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "beat_app", "worker", "-c", "1"]
        command += ["-l", "WARNING", "--without-mingle", "--without-gossip", "-Q", "waooaw.system"]
        for number in range(2):
            options = ["-B", "-s", str(tmp_path / f"beat-{number}"), "-n", f"{probe.name}-{number}@beat"]
            log = tmp_path / f"beat-{number}.log"
            stack.callback(end, spawn([*command, *options], log=log, env=env, cwd=tmp_path))

        def started() -> list[str]:
            page = probe.workflows.list(name=f"{probe.name}.local")
            return sorted(each.workflow_id for each in page.workflows if each.status.final)

        until(lambda: len(started()) >= 4, "four workflows")
    times = [datetime.strptime(id_.removeprefix(f"{probe.name}-"), "%Y-%m-%dT%H-%M-%S") for id_ in started()]
    assert all(time.second % 2 == 0 for time in times)
    assert probe.effects().count("beat 0") >= len(times)


def test_a_schedule_that_cannot_be_run_is_refused(ledger_broker: Broker) -> None:
    """The error names what is wrong."""
    with closing(ledger_broker.app()) as app:
        schedule_workflow(app, "nightly", "reports.daily", crontab(hour=3, minute=0))
        with pytest.raises(ConfigurationError, match="'nightly' already"):
            schedule_workflow(app, "nightly", "reports.daily", 60)
        with pytest.raises(ConfigurationError, match="a second or longer"):
            schedule_workflow(app, "often", "reports.daily", 0.5)
        with pytest.raises(InvalidMessage, match="the name of a workflow"):
            schedule_workflow(app, "other", "daily", 60)
        with pytest.raises(InvalidMessage, match="name of the entry"):
            schedule_workflow(app, "with spaces", "reports.daily", 60)
