"""How a handler runs: event loop, threads, streams, exactly once."""
