"""Messages of the ledger in one file for an auditor: ``export.py`` writes it, ``checking.py`` checks it."""
