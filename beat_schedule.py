"""Beat's entry: the application and the timetable of the periodic tasks.

celery -A beat_schedule beat                      # says when
celery -A beat_schedule worker -n system@%h       # does it
"""

from __future__ import annotations

from waooaw_celery import create_app
from waooaw_celery.maintenance.tasks import register_periodic_tasks

app = create_app("beat_schedule")
register_periodic_tasks(app)
