"""The parts of an application that a publish passes."""

from __future__ import annotations

from typing import Any, Protocol

from waooaw_celery.app.publishing.large_payloads import LargePayloads
from waooaw_celery.app.publishing.publish_settings import SettingsReader
from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.store.agents.registry import AgentRegistry


class PublisherParts(Protocol):
    """The parts of an application that a publish passes."""

    @property
    def circuit_breaker(self) -> CircuitBreaker:
        """Whether the broker is worth trying."""

    @property
    def admission_control(self) -> AdmissionControl:
        """Refuses paused senders, and counts messages."""

    @property
    def publish_settings(self) -> SettingsReader:
        """The settings of Celery that each publish needs."""

    @property
    def receipts(self) -> ReceiptStore:
        """Where messages are recorded."""

    @property
    def registry(self) -> AgentRegistry:
        """The known agents."""

    @property
    def large_payloads(self) -> LargePayloads:
        """Stores the payloads that travel by reference."""

    @property
    def outbox(self) -> Any:
        """Records messages in transactions of other code."""
