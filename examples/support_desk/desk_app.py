"""The application of the desk. Each program imports it, and the modules of the agents that it runs."""

from __future__ import annotations

from waooaw_celery import create_app

app = create_app("support_desk")  # the servers are named by CELERY_BROKER_URL and WAOOAW_DATABASE_URL
