"""The command that begins a project, and the files that it writes."""
