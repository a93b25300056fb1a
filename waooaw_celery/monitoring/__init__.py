"""What a process tells about itself: traces, metrics, health over HTTP, and a log of JSON lines."""
