"""Runs the functions of workflows in a worker's processes, and replays them from the journal."""
