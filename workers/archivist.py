"""The archivist, which stores the reports: `celery -A workers.archivist worker -c 1`."""

from __future__ import annotations

from waooaw_celery.demo.agents.archivist import agent, app

__all__ = ["agent", "app"]
