"""Topics of events: patterns, filters, schemas, attributes."""
