"""The result backend, and the collector of the results that a process waits for."""
