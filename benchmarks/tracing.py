"""Sets up OpenTelemetry's SDK for benchmarks. BENCH_TRACES is ``all``, ``none`` (none is sampled), or left out."""

from __future__ import annotations

import os


def set_up() -> None:
    """Set up a tracer provider without an exporter: what spans cost to make, and not to send."""
    traces = os.environ.get("BENCH_TRACES")
    if traces is None:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_ON if traces == "all" else ALWAYS_OFF))
