"""References: a message whose large payload is kept in a store carries where it is."""
