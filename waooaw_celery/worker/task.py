"""The Celery task of each handler of an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from celery import Task
from celery.app.task import Context
from celery.exceptions import Retry

from waooaw_celery.errors import HandlerExited, ReferenceStoreUnavailable
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.monitoring.tracing.processing import processing_span
from waooaw_celery.monitoring.tracing.sending import is_traced
from waooaw_celery.worker.admission import check_admitted
from waooaw_celery.worker.attempt import attempt_of, message_of
from waooaw_celery.worker.execution.arguments import answer_of, by_position, check_arguments
from waooaw_celery.worker.execution.completion import complete, running_coroutine
from waooaw_celery.worker.execution.deadline import deadline_of, ignore_soft_limit, raise_if_at_deadline
from waooaw_celery.worker.execution.interruptions import describe, ends_greenlet, ends_worker, portable_group
from waooaw_celery.worker.ordering.key_policy import KeyPolicy
from waooaw_celery.worker.outcomes.follow_up_context import message_that_ended
from waooaw_celery.worker.outcomes.hidden_payloads import ShownResult
from waooaw_celery.worker.payloads.loading import arguments_of, wait_for_store
from waooaw_celery.worker.retries.retries import (
    check_expiry,
    check_may_retry,
    count_request,
    publish_next_attempt,
    retry_if_allowed,
)
from waooaw_celery.worker.retries.retry_policy import RetryPolicy


class HandlerCall:
    """The call of a handler with its arguments, whose ``repr`` does not show them.

    Args:
        function: the handler.
        positional, named: its arguments.
    """

    __slots__ = ("_function", "_named", "_positional")

    def __init__(self, function: Callable[..., Any], positional: Sequence[Any], named: Mapping[str, Any]) -> None:
        self._function, self._positional, self._named = function, positional, named

    def __call__(self) -> Any:
        """Call the handler."""
        return self._function(*self._positional, **self._named)


class AgentTask(Task):  # type: ignore[type-arg]
    """A handler of an agent.

    Attributes:
        agent: name of the agent.
        handler: name of the handler: ``command`` for ``@agent.on(MessageType.COMMAND)``, or the method's own.
        stoppable: whether it can be stopped while it runs: an ``async def``, or a generator between two parts.
        once: whether its effect, in ``agent.session``, is committed together with the note that it happened.
        retries: when it is tried again after an error; None: the setting ``waooaw_retries`` decides.
        deadline: ``ignore`` if it is not stopped when the caller of its request no longer waits; None: it is.
    """

    abstract = True
    Request = "waooaw_celery.worker.request:AgentRequest"
    agent: str = ""
    handler: str = ""
    stoppable: bool = False
    once: bool = False
    retries: RetryPolicy | None = None
    #: The longest text of a result in Celery's log and events. A handler may set its own.
    resultrepr_maxsize = ShownResult()
    deadline: str | None = None
    #: Which of its messages are handled in order; None: they have no keys.
    key_policy: KeyPolicy | None = None
    # A message whose handler kills its process is published again this often. Then it has failed.
    max_retries = 3
    default_retry_delay = 1

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Raise what ends a message without its handler: it was not admitted, or has wrong arguments.

        Celery calls it before the handler. Nothing that it raises is retried.
        """
        try:
            check_admitted(self)
            check_arguments(self, *self._loaded(args, kwargs))
        except Exception as error:
            attempt_of(self.request).end(failed=not isinstance(error, Retry))
            raise

    def _loaded(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            return arguments_of(self, args, kwargs)
        except ReferenceStoreUnavailable as error:
            raise wait_for_store(self, error) from error

    # A handler may have a parameter ``self``: these methods leave the name free.

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the handler; see ``handle``."""
        call = HandlerCall(super().__call__, *by_position(self, *arguments_of(self, args, kwargs)))
        del args, kwargs  # a report of an error shows the local variables of each frame
        return self.handle(call)

    def delay(self, /, *args: Any, **kwargs: Any) -> Any:
        """Publish the task with these arguments, like ``delay`` of Celery's ``Task``."""
        return self.apply_async(args, kwargs)

    def s(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return a signature with these arguments, like ``s`` of Celery's ``Task``."""
        return self.signature(args, kwargs)

    def si(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return an immutable signature with these arguments, like ``si`` of Celery's ``Task``."""
        return self.signature(args, kwargs, immutable=True)

    def handle(self, call: Callable[[], Any]) -> Any:
        """Run the handler, and decide what an error of it means for the message.

        Args:
            call: calls the handler with its arguments.

        Returns:
            The handler's result.

        Raises:
            Retry: the message is tried again.
            DeadlineExceeded: the caller of the request no longer waits, and the handler was stopped.
            InvalidMessage: the result cannot be sent; its error names the part.
            HandlerExited: the handler called ``sys.exit()``, ran out of memory, or raised another error that is no
                ``Exception``. It would otherwise end or block its worker.
        """
        # The request is never a local variable here: a report of an error would show its arguments.
        attempt = attempt_of(self.request)
        outermost = not (attempt.handler_started or attempt.handler_ended)  # a handler may call itself
        # A message of a batch was handled with the others: only what was decided about it is carried out.
        if not outermost or self.request.called_directly or attempt.verdict is not None or not is_traced():
            return self._handle(call, outermost)
        with processing_span(self, self.request, attempt.traces):
            return self._handle(call, outermost)

    def _handle(self, call: Callable[[], Any], outermost: bool) -> Any:
        attempt = attempt_of(self.request)
        if outermost:
            attempt.handler_started = True
            count_request(self, self.request)
        failed, returned = True, False
        try:
            once = self.once and outermost and not self.request.called_directly
            result = _run_once(self, call) if once else call()
            returned = True
            if outermost:
                ignore_soft_limit(self.request)  # the handler has ended before its deadline
            if outermost and not once:  # run_once has copied it before the commit
                result = answer_of(self, self.request, result)
            failed = False
        except MemoryError as error:  # Celery would end the worker, and then each worker that gets the message
            raise HandlerExited(f"{self.name} ran out of memory: {error}") from error
        except Exception as error:
            if outermost:
                ignore_soft_limit(self.request)  # nothing may interrupt the publish of the next attempt
                raise_if_at_deadline(self, error)
            if outermost and not returned:  # another attempt would have its effect again
                retry_if_allowed(self, error)
            if outermost and isinstance(error, ExceptionGroup) and not self.request.called_directly:
                raise portable_group(error) from error
            raise
        except BaseException as error:
            if self._is_interruption(error):
                raise
            if isinstance(error, SystemExit):
                kind = type(error).__name__
                raise HandlerExited(f"{self.name} raised {kind}: it called sys.exit({error.code!r})") from error
            raise HandlerExited(f"{self.name} raised {describe(error)}") from error
        else:
            return result
        finally:
            if outermost:
                try:
                    ignore_soft_limit(self.request)
                finally:
                    attempt.end(failed=failed)

    def _is_interruption(self, error: BaseException) -> bool:
        """Return whether Celery, and not the handler's own code, raised an exception that is no ``Exception``.

        A process or worker that must end interrupts its handlers, and Celery decides what happens to their
        messages. Whoever runs a unit test interrupts a handler that the test calls directly.
        """
        request = self.request
        if request.called_directly or request.is_eager:
            return not isinstance(error, SystemExit)
        return ends_worker(error) or ends_greenlet(error, str(request.id))

    def complete(self, returned: Any) -> Any:
        """Return the result of the handler: await the coroutine, or consume the generator, that it returned."""
        return complete(self, returned)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Publish another attempt, like ``retry`` of Celery's ``Task``.

        Without ``eta`` and ``countdown``, the pause is that of ``retries``. When the message would expire before
        the next attempt, it fails at once with the handler's error. It does so too when ``exc`` comes from a
        request that was retried out, or when the retry budget of the process is spent.

        Raises:
            Retry: the next attempt is published.
            Reject: it cannot be published. When the broker does not answer, it is ReturnedToQueue: the message
                stays unacknowledged, and is redelivered when the broker answers again.
        """
        if eta is None and countdown is None and self.retries is not None:
            countdown = self.retries.delay(self.request.retries)
        check_expiry(self, exc, eta, self.default_retry_delay if countdown is None else countdown)
        limit = self.max_retries if max_retries is None else max_retries
        # With throw=False, whoever calls this has decided already, such as a message that is requeued.
        if throw and exc is not None and (limit is None or self.request.retries < limit):
            check_may_retry(self, exc)
        publish = partial(super().retry, args, kwargs, exc, throw, eta=eta, countdown=countdown)
        return publish_next_attempt(partial(publish, max_retries=max_retries, **options))

    @property
    def request(self) -> Context:
        """Celery's facts about the attempt that is being handled."""
        running = running_coroutine.get()
        if running is not None and running[0] is self:
            return running[1]
        # The stack first: to find the current task, ``message_that_ended`` asks tasks for their requests.
        current: Context | None = self.request_stack.top
        if current is not None:
            return current
        ended = message_that_ended()
        if ended is not None and ended[0] is self:
            return ended[1]
        request: Context = super().request
        return request

    @property
    def message(self) -> Message:
        """The message that is being handled.

        Raises:
            InvalidMessage: this version cannot read the message's envelope.
        """
        return self.message_of(self.request)

    def message_of(self, request: Context) -> Message:
        """Return the message of a request for this handler.

        Args:
            request: Celery's request.

        Raises:
            InvalidMessage: this version cannot read the message's envelope.
        """
        return message_of(self, request)

    @property
    def call(self) -> ReplyTo | None:
        """The reply-to header of the request that is being handled, or None for a one-way message.

        Raises:
            InvalidMessage: the header is damaged.
        """
        return ReplyTo.from_header((self.request.headers or {}).get(REPLY_TO_HEADER))

    def caller_deadline(self) -> datetime | None:
        """Return when the caller of the request stops waiting, or None; see ``deadline_of``."""
        return deadline_of(self, self.request)

    def was_stopped(self) -> bool:
        """Return whether the handler was stopped because its message was cancelled."""
        return attempt_of(self.request).is_stopped


def _run_once(task: AgentTask, call: Callable[[], Any]) -> Any:
    # Imported when a handler with ``once=True`` runs: without one, no process needs SQLAlchemy for it.
    from waooaw_celery.worker.execution.exactly_once import run_once

    return run_once(task, call)
