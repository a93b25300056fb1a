"""The Celery task that every handler of an agent is."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import Any

from billiard import current_process
from celery import Task
from celery._state import get_current_worker_task
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry

from waooaw_celery.broker.circuit_breaker import is_outage
from waooaw_celery.errors import HandlerExited
from waooaw_celery.messages.headers import parse_datetime, payload_of
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.worker.admission import check_admitted
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.execution.django_connections import django_is_used, with_own_connections
from waooaw_celery.worker.execution.event_loop import HandlerCancelled, handler_event_loop
from waooaw_celery.worker.execution.exactly_once import run_once
from waooaw_celery.worker.execution.interruptions import ends_greenlet, ends_worker, told
from waooaw_celery.worker.execution.streaming import StreamWriter, consume_async_generator, consume_generator
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.outcomes.follow_up_context import is_resent_follow_up, message_that_ended
from waooaw_celery.worker.outcomes.requeue import ReturnedToQueue, pause_for_outage, requeue
from waooaw_celery.worker.outcomes.retry_policy import Retries

#: Where a task's request keeps its message once that has been read: large ones are not read twice.
_MESSAGE = "waooaw_message"
#: Where it keeps whether its handler was stopped, since the message was cancelled.
_STOPPED = "waooaw_stopped"
#: What the result backend is told of a request that was cancelled.
CANCELLED = "cancelled"
#: Where it keeps that the handler has ended, and Celery goes on.
_ENDED = "waooaw_ended"
#: Where it keeps that the message has failed, so that whatever is sent now is an errback.
_FAILED = "waooaw_failed"
#: The handler whose coroutine runs, and its request: Celery keeps both by thread, and coroutines share one.
_handling: ContextVar[tuple[AgentTask, Context] | None] = ContextVar("waooaw_handling", default=None)


class AgentTask(Task):  # type: ignore[type-arg]
    """A handler of an agent.

    Attributes:
        agent: name of the agent.
        handler: name of the handler: ``command`` for ``@agent.on(MessageType.COMMAND)``, or the method's own.
        stoppable: whether it can be stopped where it runs: an ``async def``, or between the parts of its answer.
        once: whether its effect, in ``agent.session``, is committed together with the note that it happened.
        retries: when it is tried again when it raises; None: as the setting ``waooaw_retries`` says.
    """

    abstract = True
    Request = "waooaw_celery.worker.request:AgentRequest"
    agent: str = ""
    handler: str = ""
    stoppable: bool = False
    once: bool = False
    retries: Retries | None = None
    # Bounded: a message whose handler kills its process is published again this often, then it has failed.
    max_retries = 3
    default_retry_delay = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the handler.

        Raises:
            HandlerExited: it called ``sys.exit()``, ran out of memory, or raised something else that is no
                ``Exception``, which would otherwise end or wedge its worker.
        """
        outermost = self.request.get(_ENDED) is None  # a handler may call itself
        if outermost:
            self.request.update({_ENDED: False})
        failed = True
        try:
            handle = partial(super().__call__, *args, **kwargs)
            once = self.once and outermost and not self.request.called_directly
            result = run_once(self, handle) if once else handle()
            failed = False
        except MemoryError as error:  # Celery would end the worker, and the next one that meets the message too
            raise HandlerExited(f"{self.name} ran out of memory: {error}") from error
        except Exception as error:
            if outermost:
                self._end_attempt(error)
            raise
        except BaseException as error:
            if self._is_interruption(error):
                raise
            if isinstance(error, SystemExit):
                kind = type(error).__name__
                raise HandlerExited(f"{self.name} raised {kind}: it called sys.exit({error.code!r})") from error
            raise HandlerExited(f"{self.name} raised {told(error)}") from error
        else:
            return result
        finally:
            if outermost:
                self.request.update({_ENDED: True, _FAILED: failed})

    def _is_interruption(self, error: BaseException) -> bool:
        """Whether something that is no Exception was not raised by the handler's own code.

        Its process or its worker may be told to end, and Celery knows what becomes of the message. A handler that
        is called directly, as in a unit test, is interrupted by whoever runs the test.
        """
        request = self.request
        if request.called_directly or request.is_eager:
            return not isinstance(error, SystemExit)
        return ends_worker(error) or ends_greenlet(error, str(request.id))

    @property
    def request(self) -> Context:
        """The attempt that is being handled: Celery's facts about it."""
        handling = _handling.get()
        if handling is not None and handling[0] is self:
            return handling[1]
        # Asked first: whoever looks for the current task asks tasks for their requests.
        if self.request_stack.top is None:
            after = message_that_ended()
            if after is not None and after[0] is self:
                return after[1]
        request: Context = super().request
        return request

    def _end_attempt(self, error: Exception) -> None:
        """Decide what an error of the handler means for its message.

        Raises:
            Retry: it is tried again.
            RequeueLimitExceeded: the handler gave it back too often.
            ReturnedToQueue: it is to be tried again, and the broker does not take the next attempt.
        """
        try:
            self._retry_for(error)
        except ReturnedToQueue:
            pause_for_outage()
            raise
        if isinstance(error, ReturnedToQueue):
            pause_for_outage()

    def _retry_for(self, error: Exception) -> None:
        """Have the message tried again after an error that its handler raised, if that is wanted."""
        if self.request.called_directly:
            return
        if (
            isinstance(error, Reject)
            and not isinstance(error, ReturnedToQueue)
            and getattr(error, "requeue", False)
        ):
            raise requeue(self, error) from error
        if isinstance(error, (Ignore, Reject, Retry)):
            return
        if self.retries is None and getattr(self, "autoretry_for", None):  # Celery has seen to it
            return
        retries = self._retries()
        if self.request.retries + 1 < retries.attempts and retries.wants(error):
            pause = retries.delay(self.request.retries)
            raise self.retry(exc=error, countdown=pause, max_retries=retries.attempts - 1)

    def _retries(self) -> Retries:
        return self.retries if self.retries is not None else Retries.of(self.app.settings.retries)  # type: ignore[attr-defined]  # an AgentApp

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
        """Ask for another attempt, as Celery's task does, also while the broker does not answer.

        Where neither ``eta`` nor ``countdown`` is given, the pause is that of ``retries``. When the message would
        expire before that, it fails at once with the handler's error.

        Raises:
            Retry: it is on its way.
            Reject: it could not be published. When that is because the broker is away, it is ReturnedToQueue: the
                message is unacknowledged, and comes again when the broker is back.
        """
        if eta is None and countdown is None and self.retries is not None:
            countdown = self.retries.delay(self.request.retries)
        self._check_in_time(exc, eta, self.default_retry_delay if countdown is None else countdown)
        try:
            return super().retry(
                args, kwargs, exc, throw, eta=eta, countdown=countdown, max_retries=max_retries, **options
            )
        except Reject as error:
            reason: Any = error.args[0] if error.args else None
            if isinstance(reason, Exception) and is_outage(reason):
                raise ReturnedToQueue(reason, requeue=True) from error
            raise

    def _check_in_time(self, exc: Exception | None, eta: datetime | None, countdown: float) -> None:
        """Raise a handler's error, or that its time is over, when another attempt would come too late."""
        if self.request.called_directly:
            return
        expires_at = parse_datetime(self.request.expires, UTC)
        due = parse_datetime(eta, self.app.timezone) or clock_of(self.app).now() + timedelta(seconds=countdown)
        if expires_at is not None and due >= expires_at:
            cause = exc or sys.exc_info()[1]
            if cause is not None:
                raise cause
            raise self.MaxRetriesExceededError(f"{self.name}[{self.request.id}] expires before its next attempt")

    def complete(self, outcome: Any) -> Any:
        """Bring what the handler returned to its end: a coroutine or a generator.

        Called directly, as in a unit test, either is the caller's to await or to exhaust.
        """
        request = self.request
        if request.called_directly:
            return outcome
        try:
            if inspect.isgenerator(outcome):
                return consume_generator(outcome, self._chunks(request), partial(self._is_stopped, request))
            if inspect.isasyncgen(outcome):
                outcome = consume_async_generator(outcome, self._chunks(request))
            return self._awaited(outcome, request) if inspect.iscoroutine(outcome) else outcome
        except HandlerCancelled as error:
            request.update({_STOPPED: True})
            raise Ignore(CANCELLED) from error

    def _is_stopped(self, request: Context) -> bool:
        """Whether the handler is to be stopped: asked before it begins, and between the parts of its answer."""
        return cancellations_of(self.app).stops(str(request.id))

    def _chunks(self, request: Context) -> StreamWriter:
        call = self.call
        return StreamWriter(lambda: self.backend, request, streamed=call is not None and call.stream)

    def _awaited(self, coroutine: Any, request: Context) -> Any:
        """Run a coroutine on the event loop of the process, and wait for it."""
        token = _handling.set((self, request))
        if django_is_used(self.app):
            coroutine = with_own_connections(coroutine)
        try:
            settings = self.app.settings  # type: ignore[attr-defined]  # an AgentApp
            return handler_event_loop(settings.stall_seconds).run(
                str(request.id), coroutine, *self._limits(request), cancelled=partial(self._is_stopped, request)
            )
        finally:
            _handling.reset(token)

    def _limits(self, request: Context) -> tuple[float | None, float | None]:
        """Return the soft and the hard time limit, in seconds, where Celery does not see to them itself."""
        if current_process().name != "MainProcess":  # the prefork pool does
            return None, None
        hard, soft = request.timelimit or (None, None)
        return soft or self.soft_time_limit, hard or self.time_limit

    def was_stopped(self) -> bool:
        """Whether the handler was stopped, since its message was cancelled."""
        return bool(self.request.get(_STOPPED))

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Drop a message that is not to be begun."""
        try:
            check_admitted(self)
        except Exception:  # no handler runs any more
            self.request.update({_ENDED: True, _FAILED: True})
            raise

    @property
    def message(self) -> Message:
        """The message that is being handled.

        Raises:
            InvalidMessage: it came with an envelope that this version cannot read.
        """
        return self.message_of(self.request)

    @property
    def call(self) -> ReplyTo | None:
        """How the answer to the request that is being handled is to come, or None when it is no request.

        Raises:
            InvalidMessage: its header is damaged.
        """
        return ReplyTo.from_header((self.request.headers or {}).get(REPLY_TO_HEADER))

    def awaited_until(self) -> datetime | None:
        """Return when the caller of the request that is being handled stops waiting, or None when it does not."""
        call = self.call
        bounded = call is not None and not call.stream and call.on_reply is None
        return self.message.expires_at if bounded else None

    def message_of(self, request: Context) -> Message:
        """Return the message of a request for this handler.

        Raises:
            InvalidMessage: it came with an envelope that this version cannot read.
        """
        message: Message | None = request.get(_MESSAGE)
        if message is None:
            headers = {
                "id": request.id,
                "root_id": request.root_id,
                "parent_id": request.parent_id,
                ENVELOPE_HEADER: (request.headers or {}).get(ENVELOPE_HEADER),
            }
            payload = payload_of(self.handler, request.args or (), request.kwargs or {})
            message = Message.from_headers(headers, self.agent, payload)
            if isinstance(message.sent_at, LocalTime):  # its sender does not say when it was sent
                message = message.filled_in(sent_at=clock_of(self.app).corrected(message.sent_at))
            request.update({_MESSAGE: message})
        return message


def as_plain_function(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return the plain function, bound to its task, as which Celery runs an ``async def`` or a generator.

    Args:
        function: the handler as it was written.
        bind: whether it takes its task as first argument.
    """

    @wraps(function)
    def run(task: AgentTask, /, *args: Any, **kwargs: Any) -> Any:
        return task.complete(function(task, *args, **kwargs) if bind else function(*args, **kwargs))

    own = inspect.signature(function)
    first = () if bind else (inspect.Parameter("task", inspect.Parameter.POSITIONAL_ONLY),)
    # Celery checks the arguments of a call against it.
    run.__signature__ = own.replace(parameters=(*first, *own.parameters.values()))  # type: ignore[attr-defined]
    return run


def current_task() -> AgentTask | None:
    """Return the handler that is running in this thread or coroutine, or None outside of handlers."""
    handling = _handling.get()
    task = get_current_worker_task() if handling is None else handling[0]
    if task is None and (after := message_that_ended()) is not None:
        task = after[0]
    return task if isinstance(task, AgentTask) else None


def is_sent_by_finished_handler() -> bool:
    """Whether Celery sends on what was begun, such as the next step of a chain, and no handler runs."""
    if _handling.get() is not None:  # a coroutine of a handler, which may outlive it
        return False
    if is_resent_follow_up():
        return True
    task = get_current_worker_task()
    if isinstance(task, AgentTask):
        return bool(task.request.get(_ENDED))
    if task is None:
        after = message_that_ended()
        return after is not None and isinstance(after[0], AgentTask)
    return bool(task.name.startswith("celery."))


def has_failed(task_name: str, args: Any) -> bool:
    """Whether what Celery sends on is an errback: the message that has ended has failed.

    Args:
        task_name: of what is sent.
        args: its positional arguments; an errback's first is the id of the message that has failed.
    """
    task = current_task()
    if task is None or get_current_worker_task() is None:  # only after a failure
        return True
    request = task.request
    if request.get(_FAILED):
        return True
    named = [each.get("task") for each in request.errbacks or () if isinstance(each, dict)]
    return task_name in named and tuple(args or ())[:1] == (request.id,)


def note_failed() -> None:
    """Note that the message which has ended fails, since what follows it cannot be sent."""
    task = current_task()
    if task is not None:
        task.request.update({_FAILED: True})


def current_message() -> Message | None:
    """Return the message that is being handled in this thread or coroutine, or None outside of handlers."""
    task = current_task()
    return task.message if task is not None else None
