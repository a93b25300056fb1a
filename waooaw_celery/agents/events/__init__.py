"""Publishes events to topics, delivers them to subscribers, and replays them."""
