"""The orchestrator, which sends documents to the analysts: `celery -A workers.orchestrator worker -c 1`."""

from __future__ import annotations

from waooaw_celery.demo.agents.orchestrator import agent, app

__all__ = ["agent", "app"]
