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

# The task that beat calls stays an ordinary one.
CELERY_TASK_DEFAULT_QUEUE = "celery"
CELERY_WAOOAW_SENDER = "shop"
CELERY_WAOOAW_AGENTS = ["clerk", "mailer"]
# The ledger is in the database of Django, so that an order and its message are committed together.
CELERY_WAOOAW_DATABASE_URL = f"sqlite:///{os.environ['SHOP_DATABASE']}"
