"""Delivers events to subscribers: new ones, and recorded ones again."""
