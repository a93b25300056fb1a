"""The web console: what the ledger, the broker and the store know, in a browser. Only its command loads it.

``application.py`` puts it together. ``access/`` says who may see and do what, ``pages/`` has the pages, and
``changes/`` carries out what people change, and records it in the ledger.
"""
