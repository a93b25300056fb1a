"""What `waooaw top` shows: ``reader.py`` asks the servers, ``frame.py`` says which agents need attention."""
