"""The demo's housekeeping: the application that beat and the system's worker run. It is no agent."""

from __future__ import annotations

from waooaw_celery import create_app
from waooaw_celery.maintenance.tasks import register_periodic_tasks

app = create_app("system")
register_periodic_tasks(app)
