"""Large payloads, and which messages carry references to them."""
