"""Dead letters: what died on its way or in its handler, kept by the broker until somebody takes care of it."""
