"""The settings of the shop."""

from __future__ import annotations

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only for the example")
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django_celery_beat", "orders"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["SHOP_DATABASE"],
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}

CELERY_BROKER_URL = os.environ["SHOP_BROKER"]
CELERY_RESULT_BACKEND = os.environ["SHOP_REDIS"]
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TASK_SOFT_TIME_LIMIT = 30

# Ordinary tasks go where they went. Without this they would go to the queue of the first agent.
CELERY_TASK_DEFAULT_QUEUE = "celery"
# Who sends when no agent does: the views.
CELERY_WAOOAW_SENDER = "shop"
# The agents that views may send to before their worker first ran.
CELERY_WAOOAW_AGENTS = ["mailer"]
