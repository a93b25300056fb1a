"""Helpers for web frameworks. Import the module of yours: nothing else of the package imports a framework."""
