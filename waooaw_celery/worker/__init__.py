"""What happens in an agent's worker.

A message passes five steps:

1. consume: ``AgentConsumer.consume`` in ``consumer.py`` checks what arrives and gives it to the pool as an
   ``AgentRequest`` (``request.py``).
2. admit: ``admit`` in ``admission.py`` decides whether the handler runs, and records DELIVERED.
3. handle: ``AgentTask.handle`` in ``task.py`` runs the handler. ``execution/`` is how it runs.
4. record: ``record`` in ``record.py`` writes the outcome down. ``signals.py`` calls it, ``outcomes/`` is what
   follows: retries, dead letters, replies, follow-ups.
5. acknowledge: ``AgentRequest.acknowledge`` lets the broker forget the message.

``attempt.py`` holds the facts about a message. ``health/`` checks that the worker can start, is alive and
makes progress.
"""
