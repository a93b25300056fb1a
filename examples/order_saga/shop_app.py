"""The application of the shop. Each program imports it, and the modules of the agents that it runs."""

from __future__ import annotations

from waooaw_celery import create_app

app = create_app("shop")  # the servers are named by CELERY_BROKER_URL and WAOOAW_DATABASE_URL
