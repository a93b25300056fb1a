"""Compares this package with plain Celery, with other projects and with what the servers allow, in one run.

python3 dev.py bench [--quick] [--only sending] [--rounds 5]
"""
