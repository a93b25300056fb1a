"""The Celery task of a handler that is given batches of messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.batches.batch_policy import BatchPolicy
from waooaw_celery.worker.batches.message_batch import MessageBatch, Verdict, VerdictKind
from waooaw_celery.worker.task import AgentTask


class BatchTask(AgentTask):
    """A handler that is given batches of messages.

    Celery traces each message by itself, after the handler has returned. What it calls then carries out what the
    handler has decided about the message.

    Attributes:
        batch: the limits of a batch.
        handle_batch: the handler as it was written.
    """

    abstract = True
    Request = "waooaw_celery.worker.batches.request:BatchRequest"
    Strategy = "waooaw_celery.worker.batches.collector:collecting_strategy"
    batch: BatchPolicy = BatchPolicy(1, 0.0)
    handle_batch: Callable[[MessageBatch], Any]

    def call_handler(self, batch: MessageBatch) -> Any:
        """Call the handler with a batch, and return what it returns: a coroutine is awaited."""
        return self.complete(self.handle_batch(batch))

    def conclude(self, payload: JSON | Message | MessageBatch) -> Any:
        """Carry out what the handler has decided about the message of the current request.

        A message that is in no batch, as in a unit test or with ``task_always_eager``, is a batch of its own.

        Args:
            payload: the payload of the message. A unit test may give a Message or a MessageBatch.

        Raises:
            Exception: the error of the message.
            Retry: it is tried again.
        """
        if isinstance(payload, MessageBatch):
            return self.call_handler(payload)
        verdict: Verdict | None = attempt_of(self.request).verdict
        if verdict is None:
            batch = MessageBatch((payload if isinstance(payload, Message) else self.message,))
            returned = self.call_handler(batch)
            if returned is not None and self.request.called_directly:  # a coroutine, left to the caller
                return returned
            [verdict] = batch.verdicts()
        if verdict.kind is VerdictKind.RETRIED:
            error = verdict.error or RetryRequested("the handler asked for another attempt")
            raise self.retry(exc=error, countdown=verdict.countdown)
        if verdict.error is not None:
            attempt_of(self.request).is_final = verdict.kind is VerdictKind.FAILED
            raise verdict.error
        return None


class RetryRequested(Exception):
    """The handler asked for another attempt at a message of its batch, and named no error."""
