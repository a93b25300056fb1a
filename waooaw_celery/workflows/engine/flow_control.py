"""What a workflow's function raises to steer its workflow."""

from __future__ import annotations

from waooaw_celery.messages.validation import JSON


class ContinueAsNew(BaseException):
    """The function begins again as a new run, with another input and without the steps of this one."""

    def __init__(self, given: dict[str, JSON]) -> None:
        super().__init__()
        self.input = given


class WorkflowStopped(BaseException):
    """The function does not go on in this thread: its workflow was put down, or has ended."""
