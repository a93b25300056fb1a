"""Dead letters: stored in the broker, listed, retried and discarded."""
