"""Beat's entry: the application and the timetable of the periodic tasks.

celery -A beat_schedule beat                      # says when
celery -A beat_schedule worker -n system@%h       # does it
"""

from __future__ import annotations

from waooaw_celery import create_app
from waooaw_celery.tasks import register

app = create_app("beat_schedule")
register(app)
