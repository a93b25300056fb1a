"""The dashboard, which asks all agents for their status: `celery -A workers.dashboard worker -c 1`."""

from __future__ import annotations

from waooaw_celery.demo.agents.dashboard import agent, app

__all__ = ["agent", "app"]
