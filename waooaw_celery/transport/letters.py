"""Dead letters: what no consumer may see any more, kept with its raw bytes in a stream of the broker."""

from __future__ import annotations

from celery.utils.dispatch import Signal

#: The stream's name.
DEAD_KEY = "waooaw.dead"

#: Sent when a message became a dead letter: ``sender`` is the channel, ``queue`` the queue's name, ``raw`` the
#: message's bytes, ``message_id`` the id of its task or None, ``reason`` a sentence.
parked = Signal(name="parked", providing_args=["queue", "raw", "message_id", "reason"])
