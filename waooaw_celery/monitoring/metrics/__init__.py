"""Metrics of a process, by OpenTelemetry's semantic conventions for messaging, in Prometheus' form."""
