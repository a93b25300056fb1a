"""What is said of topics, whoever carries it: their grammar, filters, schemas, an event's attributes."""
