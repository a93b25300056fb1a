"""Large payloads in a worker: loaded just before their handler is called."""
