"""Settings of a Django project for tests; its database is named by DJANGO_DATABASE, as JSON."""

from __future__ import annotations

import json
import os

SECRET_KEY = "for tests"  # noqa: S105 - it protects nothing
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **json.loads(os.environ["DJANGO_DATABASE"])}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
