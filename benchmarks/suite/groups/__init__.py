"""The groups of rows: each module measures one kind of work."""
