"""Workflows: functions of an agent that survive every crash, because each of their steps is recorded."""
