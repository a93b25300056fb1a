"""The application with the timetable of the periodic tasks, which two processes run.

celery -A beat_schedule beat                      # sends each task when it is due
celery -A beat_schedule worker -n system@%h       # runs it
"""

from __future__ import annotations

from waooaw_celery import create_app
from waooaw_celery.maintenance.tasks import register_periodic_tasks

app = create_app("beat_schedule")
register_periodic_tasks(app)
