"""What a person may change in the console. ``handler.py`` checks and records a change, the others carry it out."""
