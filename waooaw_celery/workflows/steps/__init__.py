"""The kinds of steps, and what each does."""
