"""What all processes know together about the agents that they request: circuit breakers, requests in flight."""
