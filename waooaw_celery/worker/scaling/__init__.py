"""How many messages a worker handles at once, and how that is changed while it runs."""
