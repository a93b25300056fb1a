"""An analyst, which measures documents: `ANALYST_NAME=analyst-1 celery -A workers.analyst worker -c 1`."""

from __future__ import annotations

from waooaw_celery.demo.agents.analyst import agent, app

__all__ = ["agent", "app"]
