"""`python -m waooaw_celery` is the command line."""

from __future__ import annotations

from waooaw_celery.cli import main

main()
