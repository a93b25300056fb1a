"""How a handler runs: pools, event loop, threads, streams, exactly once."""
