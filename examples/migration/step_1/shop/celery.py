"""The Celery application of the shop: an AgentApp does everything that Celery does."""

from __future__ import annotations

import os

import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration

from waooaw_celery import AgentApp

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
sentry_sdk.init(dsn=os.environ.get("SENTRY_DSN"), integrations=[CeleryIntegration(monitor_beat_tasks=True)])

app = AgentApp("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()  # finds tasks.py and agents.py of each installed app
