"""Sets up OpenTelemetry's SDK in a worker's process, with an exporter to ``waooaw_traces_endpoint``."""

from __future__ import annotations

from typing import Any

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.monitoring.tracing.opentelemetry_api import api

logger = get_logger(__name__)

#: Milliseconds for which the end of a process waits for its last spans.
FLUSH_MILLISECONDS = 3000


def check_sdk() -> None:
    """Check that OpenTelemetry's SDK and its exporter are installed.

    Raises:
        ConfigurationError: they are not.
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401 - only whether it is installed
    except ImportError as error:
        raise ConfigurationError(
            "waooaw_traces_endpoint needs OpenTelemetry: pip install 'waooaw-celery[otel]'"
        ) from error


def start_provider(endpoint: str, service: str) -> Any:
    """Set up a tracer provider, unless the program has set up one. Call it in each process, after the fork.

    Args:
        endpoint: the URL of OTLP over HTTP that gets the spans.
        service: the attribute ``service.name``, if the environment variable ``OTEL_SERVICE_NAME`` does not set it.

    Returns:
        The provider; None: the program has set up its own.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if api() is not None:
        logger.info("the program has set up OpenTelemetry itself: waooaw_traces_endpoint has no effect")
        return None
    # The environment wins, as OpenTelemetry's specification says: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": service}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider


def flush(provider: Any) -> None:
    """Send the last spans of a process that ends.

    Args:
        provider: what ``start_provider`` returned, or None.
    """
    if provider is not None and not provider.force_flush(FLUSH_MILLISECONDS):
        logger.warning("spans were not sent in time before the end of the process")
