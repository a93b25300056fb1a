"""Topics of events: patterns, payload filters, schemas and event attributes."""
