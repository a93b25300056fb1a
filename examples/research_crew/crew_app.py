"""The application of the crew. Each program imports it, and the modules of the agents that it runs."""

from __future__ import annotations

from waooaw_celery import create_app

app = create_app("research_crew")  # the servers are named by CELERY_BROKER_URL and WAOOAW_DATABASE_URL
