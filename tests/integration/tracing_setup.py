"""Sets up what traces in a process: each ended span, and each event of Sentry, is a JSON line of TRACING_FILE."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES = Path(os.environ["TRACING_FILE"])
#: What traces: ``otel``, ``celery`` (its instrumentation of Celery), ``sentry``; several are separated by commas.
KINDS = os.environ.get("TRACING", "otel").split(",")


def write(line: dict[str, Any]) -> None:
    """Append a line to the file. Lines of several processes do not mix."""
    with LINES.open("a") as lines:
        lines.write(f"{json.dumps(line)}\n")


def set_up_opentelemetry() -> None:
    """Set up a tracer provider that writes spans to the file."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    class FileExporter(SpanExporter):
        """Writes each span as a line."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for span in spans:
                context, parent = span.get_span_context(), span.parent
                write(
                    {
                        "name": span.name,
                        "kind": span.kind.name,
                        "scope": span.instrumentation_scope.name,
                        "trace": f"{context.trace_id:032x}",
                        "id": f"{context.span_id:016x}",
                        "parent": parent and f"{parent.span_id:016x}",
                        "links": [f"{link.context.span_id:016x}" for link in span.links],
                        "attributes": dict(span.attributes or {}),
                        "status": span.status.status_code.name,
                        "description": span.status.description,
                        "events": [[event.name, dict(event.attributes or {})] for event in span.events],
                        "pid": os.getpid(),
                    }
                )
            return SpanExportResult.SUCCESS

    sampler = ALWAYS_OFF if os.environ.get("TRACING_SAMPLES") == "none" else ALWAYS_ON
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
    if os.environ.get("TRACING_BREAKS"):

        class Broken(SpanProcessor):
            """Raises where the variable says."""

            def on_start(self, span: Any, parent_context: Any = None) -> None:
                if os.environ["TRACING_BREAKS"] == "start":
                    raise RuntimeError("a processor of spans that is broken")

            def on_end(self, span: Any) -> None:
                if os.environ["TRACING_BREAKS"] == "end":
                    raise RuntimeError("a processor of spans that is broken")

        provider.add_span_processor(Broken())
    trace.set_tracer_provider(provider)


def set_up_sentry() -> None:
    """Set up Sentry, whose events and transactions are written to the file instead of being sent."""
    import sentry_sdk
    from sentry_sdk.envelope import Envelope
    from sentry_sdk.transport import Transport

    class FileTransport(Transport):
        """Writes each event as a line."""

        def capture_envelope(self, envelope: Envelope) -> None:
            for item in envelope.items:
                if item.payload.json is not None:
                    write({"sentry": item.type, "event": json.loads(json.dumps(item.payload.json, default=repr))})

    # Its stack traces show local variables, as they do by default.
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1", transport=FileTransport, traces_sample_rate=1.0, send_default_pii=False
    )


def set_up() -> None:
    """Set up what TRACING names."""
    if "otel" in KINDS:
        set_up_opentelemetry()
    if "celery" in KINDS:
        from opentelemetry.instrumentation.celery import CeleryInstrumentor

        CeleryInstrumentor().instrument()
    if "sentry" in KINDS:
        set_up_sentry()
