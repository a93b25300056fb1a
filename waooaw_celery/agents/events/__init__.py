"""Events: published, delivered, replayed."""
