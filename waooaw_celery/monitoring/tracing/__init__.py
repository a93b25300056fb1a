"""Traces: spans of OpenTelemetry for each message that is sent and handled, and the trace context of messages."""
